"""A log over a websocket, through the synchronous client of `websockets`."""

import contextlib
import logging
import threading
from collections.abc import Generator, Iterator
from typing import Any, Final

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, reconnect

from worker.platform.deadline import tls_context
from worker.platform.errors import ClientError
from worker.platform.streams.connection import closed_error, keep_alive
from worker.platform.streams.failures import closed_in_order, websocket_error
from worker.platform.streams.reader import LogReader
from worker.platform.streams.target import StreamTarget

CLOSE_SECONDS: Final = 0.2
"""How long to wait for the other side's goodbye; then the line is cut."""

FRAMES_AHEAD: Final = 8
"""Messages that wait in the library; behind them the kernel's buffers fill and the agent has to wait."""

quiet_log = logging.getLogger(__name__)
# At DEBUG the library writes the handshake down, tokens and all.
quiet_log.setLevel(logging.WARNING)


class _Direct(reconnect):
    """Does not follow redirects: the tokens would go to whoever the answer names."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


def _options(target: StreamTarget) -> dict[str, Any]:
    return {
        "ssl": tls_context() if target.websocket_url.startswith("wss:") else None,
        # Ray's own end sends nothing at all once packing is offered to it.
        "compression": None,
        "additional_headers": target.websocket_headers(),
        "user_agent_header": "synapse-worker",
        "proxy": None,
        "open_timeout": target.silence,
        # A reader that is slow does not read the answers to pings either.
        "ping_interval": None,
        "close_timeout": CLOSE_SECONDS,
        # A line of any length may come in one message; it is cut when it is here.
        "max_size": target.limits.max_bytes,
        "max_queue": FRAMES_AHEAD,
        "logger": quiet_log,
    }


class WebsocketLog:
    """Implements `LogConnection`."""

    def __init__(self, target: StreamTarget) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._websocket: ClientConnection | None = None
        self._closed = False

    def batches(self) -> Generator[list[str]]:
        reader = LogReader(self._target.limits)
        failure: ClientError | None
        try:
            with self._opened() as websocket:
                while not reader.over:
                    yield reader.message(websocket.recv(self._target.silence, decode=False))
            failure = reader.failure
        except (WebSocketException, OSError) as error:
            failure = closed_error() if self._closed else None
            if failure is None and not closed_in_order(error):
                failure = websocket_error(error)
        # Outside of the except block: the original knows the URL.
        if failure is not None:
            raise failure
        yield reader.end()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            websocket = self._websocket
        if websocket is not None:
            websocket.close()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[ClientConnection]:
        target = self._target
        with _Direct(target.websocket_url, **_options(target)) as websocket:
            with self._lock:
                if self._closed:
                    raise closed_error()
                self._websocket = websocket
            keep_alive(websocket.socket)
            yield websocket
