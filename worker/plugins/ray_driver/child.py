"""The driver process: runs what the worker sends, each call in a thread, until the worker ends.

`python -m worker.plugins.ray_driver.child FD PARENT`: the pipe's file descriptor, the worker's process id.
"""

import json
import logging
import os
import pickle
import signal
import sys
import threading
from collections.abc import MutableMapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Final

MAX_ERROR_CHARS: Final = 100_000
PARENT_POLL_SECONDS: Final = 1.0
SHUTDOWN_TIMEOUT_SECONDS: Final = 3.0
"""For Ray to disconnect, so that the cluster learns at once that its driver is gone."""

ENVIRONMENT: Final = {
    # A call without a connection must fail: Ray would connect by itself, or start a cluster.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Ray ends the process when its control store is away for 60 s, and with it the calls that wait for it.
    "RAY_gcs_rpc_server_reconnect_timeout_s": str(7 * 24 * 3600),
    # Ray Client keeps the actors of a driver that was killed for so many seconds.
    "RAY_CLIENT_RECONNECT_GRACE_PERIOD": "5",
}
"""Read by Ray when it is loaded; what the operator has set takes precedence."""

RAY_USES_PROXY: Final = "RAY_grpc_enable_http_proxy"
"""Ray's own setting, by which its connections go through the environment's proxies."""
PROXIES: Final = frozenset({"http_proxy", "https_proxy", "grpc_proxy", "all_proxy"})


def drop_proxies(environ: MutableMapping[str, str]) -> None:
    """Let no connection of Ray's go through a proxy: some of them do not heed Ray's setting."""
    if environ.get(RAY_USES_PROXY, "0").lower() in ("1", "true"):
        return
    for name in [name for name in environ if name.lower() in PROXIES]:
        del environ[name]


class Child:
    """Answers the calls of the worker `parent` that come through `connection`."""

    def __init__(self, connection: "Connection[bytes, bytes]", parent: int) -> None:
        self._connection = connection
        self._parent = parent
        self._lock = threading.Lock()

    def run(self) -> None:
        """Return when the worker has ended, which closes the pipe.

        A process that the worker forked may hold a copy of the pipe's end, so the parent is checked, too.
        """
        with suppress(EOFError, OSError):
            while os.getppid() == self._parent:
                if self._connection.poll(PARENT_POLL_SECONDS):
                    number, call = pickle.loads(self._connection.recv_bytes())  # noqa: S301 - the worker's
                    threading.Thread(target=self._answer, args=(number, call), daemon=True).start()

    def _answer(self, number: int, call: bytes) -> None:
        content: dict[str, Any] = {"number": number}
        try:
            function, arguments = pickle.loads(call)  # noqa: S301 - the worker's
            reply = json.dumps({**content, "value": function(*arguments)}, default=str)
        except BaseException as error:  # also SystemExit, with which Ray reports that it cannot connect
            text = _text(error)[-MAX_ERROR_CHARS:]
            reply = json.dumps({**content, "error": [type(error).__name__, text]})
        with self._lock, suppress(OSError):
            self._connection.send_bytes(reply.encode())


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an author's __str__
        return "(its message cannot be printed)"


def _disconnect() -> None:
    ray = sys.modules.get("ray")
    with suppress(Exception):
        if ray is not None and ray.is_initialized():
            ray.shutdown()


def main(descriptor: int, parent: int) -> None:
    """Serve the worker, then end the process at once: Ray's threads could keep it for ever."""
    # A process manager may signal all processes of a worker; this one serves the worker's last tasks.
    # Blocked, in all threads to come: Ray sets a handler of its own, which prints a stack and ends the
    # process.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    drop_proxies(os.environ)
    # What matters is sent to the worker as an error, and logged there without secrets.
    logging.disable()
    Child(Connection(descriptor), parent).run()
    disconnecting = threading.Thread(target=_disconnect, daemon=True)
    disconnecting.start()
    disconnecting.join(SHUTDOWN_TIMEOUT_SECONDS)
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
