"""The HTTP server of `/metrics`, `/live` and `/ready`, in the parent process of a worker."""

import errno
import os
import shutil
import socketserver
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import structlog
from celery import bootsteps, signals

from worker import metrics
from worker.host import make_private
from worker.monitoring.exposition import (
    Exposition,
    fold_ended_processes,
    metrics_folder,
    remove_metrics_of_ended,
)
from worker.monitoring.pages import Pages
from worker.monitoring.probes import StateStep
from worker.monitoring.redis_metrics import queues_of
from worker.monitoring.worker_states import states_root
from worker.services import services
from worker.settings import settings

log = structlog.get_logger(__name__)

SECONDS_BETWEEN_ATTEMPTS: Final = 5.0
REQUEST_TIMEOUT_SECONDS: Final = 10
MAX_REQUESTS: Final = 16
"""At once: a client that keeps its connection open has a thread and a file descriptor of the worker."""


class _Server(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._slots = threading.BoundedSemaphore(MAX_REQUESTS)
        super().__init__(*args, **kwargs)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or close the connection where so many clients are answered already."""
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """One request, within its time also where the client sends a byte now and then."""
        timer = threading.Timer(REQUEST_TIMEOUT_SECONDS, self.shutdown_request, (request,))
        timer.daemon = True
        timer.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            timer.cancel()
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is not worth a traceback."""

    def server_bind(self) -> None:
        """Without the stock look-up of the host's name, which takes long where no DNS answers."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _Handler(WSGIRequestHandler):
    timeout = REQUEST_TIMEOUT_SECONDS  # a client that sends nothing holds no thread for ever

    def log_message(self, *_: Any) -> None:
        """Probes and scrapes are not worth a line each."""


class HttpServerStep(bootsteps.StartStopStep):
    """Serves on WORKER_HTTP_PORT, for all workers of this host.

    The first of them gets the port, and another takes it over within seconds when that one ends.
    """

    requires = (StateStep,)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def include_if(self, parent: Any) -> bool:  # noqa: ARG002 - the bootstep's signature
        """Only where the setting asks for it."""
        return settings().worker_http_port is not None

    def start(self, parent: Any) -> None:  # noqa: ARG002 - the bootstep's signature
        """The worker starts."""
        remove_metrics_of_ended()
        self._stop.clear()
        self._thread = threading.Thread(target=self._serve_when_free, name="http-server", daemon=True)
        self._thread.start()

    def stop(self, parent: Any) -> None:
        """The worker has ended."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(SECONDS_BETWEEN_ATTEMPTS)
            self._thread = None
        with suppress(OSError):
            shutil.rmtree(metrics_folder(parent.hostname, os.getpid()))

    terminate = stop

    def _serve_when_free(self) -> None:
        host, port = settings().worker_http_host, settings().worker_http_port or 0
        pages, is_known = Pages(Exposition(services().redis, queues_of(settings()))), False
        while not self._stop.is_set():
            try:
                server = _Server((host, port), _Handler)
            except OSError as error:
                if not is_known:
                    is_taken = error.errno == errno.EADDRINUSE
                    who = "another worker of this host, or another program, has it" if is_taken else None
                    log.warning("HTTP port not opened", host=host, port=port, reason=who or error.strerror)
                is_known = True
                self._stop.wait(SECONDS_BETWEEN_ATTEMPTS)
                continue
            server.set_app(pages)
            log.info("metrics and probes served", host=host, port=server.server_port)
            stopper = threading.Thread(target=self._shut_down, args=(server,), daemon=True)
            stopper.start()
            with server:
                server.serve_forever()

    def _shut_down(self, server: _Server) -> None:
        self._stop.wait()
        server.shutdown()


_folder: Path | None = None
"""Where this worker records; its pool's processes have it from their parent."""


@signals.celeryd_init.connect(weak=False)
def _record(sender: str = "", **_: Any) -> None:
    """Before the pool: processes that are forked from this one record into the same folder."""
    global _folder
    if settings().worker_http_port is not None:
        try:
            folder = metrics_folder(sender, os.getpid())
            make_private(folder, states_root())
            metrics.start_recording(folder)
            _folder = folder
        except OSError as error:
            log.error("nothing is recorded for /metrics", error=error.strerror, path=error.filename)


@signals.worker_process_init.connect(weak=False)
def _fold_ended(**_: Any) -> None:
    """A process of the pool begins, perhaps in place of one that has ended: nobody else may ever look."""
    if _folder is not None:
        with suppress(OSError):
            fold_ended_processes(_folder)
