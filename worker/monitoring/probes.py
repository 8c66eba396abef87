"""Celery's boot steps that write a worker's state for `synapse-worker live` and `ready`."""

import os
import threading
import time
from typing import Any, Final

import structlog
from celery import bootsteps
from celery.concurrency import solo

from worker.host import make_private, process_start
from worker.monitoring.worker_states import (
    SECONDS_BETWEEN_WRITES,
    StateFile,
    WorkerState,
    remove_states_of_ended,
    states_folder,
    states_root,
)

log = structlog.get_logger(__name__)

LOOP_SECONDS: Final = 2.0
STOP_TIMEOUT_SECONDS: Final = 5.0


class _Loop:
    """What the consumer's boot step knows, for the thread that writes the state."""

    is_connected = False
    turned_at: float | None = None


_loop = _Loop()


class StateStep(bootsteps.StartStopStep):
    """Writes the state every few seconds from a thread, so that a process that does not run is noticed."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, parent: Any) -> None:
        """The worker starts; it is not ready yet."""
        try:
            make_private(states_folder(), states_root())
            remove_states_of_ended(states_folder())
            file = StateFile(states_folder(), parent.hostname)
        except OSError as error:
            log.error("worker state not written, so probes fail", error=error.strerror)
            return
        self._stop.clear()
        self._thread = threading.Thread(
            target=self._write_repeatedly, args=(file, parent.hostname), name="worker-state", daemon=True
        )
        self._thread.start()

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - the bootstep's signature
        """The worker has ended."""
        self._stop.set()
        _changed.set()
        if self._thread is not None:
            self._thread.join(STOP_TIMEOUT_SECONDS)
            self._thread = None

    terminate = stop

    def _write_repeatedly(self, file: StateFile, name: str) -> None:
        was_written = True
        pid, started = os.getpid(), process_start(os.getpid())
        while True:
            state = WorkerState(name, pid, time.monotonic(), _loop.is_connected, _loop.turned_at, started)
            try:
                file.write(state)
                was_written = True
            except OSError as error:
                if was_written:
                    log.error("worker state not written, so probes fail", error=error.strerror)
                was_written = False
            if _changed.wait(SECONDS_BETWEEN_WRITES):
                _changed.clear()
            if self._stop.is_set():
                file.remove()
                return


_changed = threading.Event()
"""Set when the state is to be written at once."""


class ConnectedStep(bootsteps.StartStopStep):
    """Knows whether the worker consumes, and whether its event loop turns."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._timer: Any = None

    def start(self, parent: Any) -> None:
        """The consumer has a connection and its queues."""
        # The loop of a pool `solo` runs the tasks itself, and does not turn meanwhile.
        if parent.hub is not None and not isinstance(parent.pool, solo.TaskPool):
            self._turned()
            self._timer = parent.timer.call_repeatedly(LOOP_SECONDS, self._turned)
        _loop.is_connected = True
        _changed.set()

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - the bootstep's signature
        """The connection is lost, or the worker stops."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        _loop.is_connected, _loop.turned_at = False, None
        _changed.set()

    @staticmethod
    def _turned() -> None:
        _loop.turned_at = time.monotonic()
