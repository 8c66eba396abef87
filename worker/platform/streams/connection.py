"""What connections over both protocols have in common: addresses, headers, keepalive, the idle timeout."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from worker.platform.errors import MalformedResponseError
from worker.platform.streams.parser import StreamLimits

_KEEPALIVE: Final = (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


def enable_keepalive(sock: socket.socket | None) -> None:
    """Have the kernel detect within a minute that the other machine is gone.

    Websocket pings are no alternative: a reader that is slow does not read the pongs in time.

    Args:
        sock: The connection's socket; None or a closed one if a short log has already ended.
    """
    if sock is None:
        return
    with contextlib.suppress(OSError):
        for level, option, value in _keepalive_options():
            sock.setsockopt(level, option, value)


def _keepalive_options() -> list[tuple[int, int, int]]:
    """The arguments of `setsockopt`; not every system has each option."""
    names = [(getattr(socket, name, None), seconds) for name, seconds in _KEEPALIVE]
    known = [(socket.IPPROTO_TCP, option, value) for option, value in names if option is not None]
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *known]


# The websocket library sets these itself, or they do not belong in a handshake.
_NOT_FOR_WEBSOCKETS = frozenset({"accept", "accept-encoding", "connection", "user-agent"})


@dataclass(frozen=True, slots=True)
class StreamTarget:
    """Where one log is and how it is read.

    Attributes:
        stream_url: Of the chunked HTTP stream.
        websocket_url: Of the websocket.
        headers: The client's, with its tokens; their names are in lower case.
        connect_timeout: Seconds to connect.
        idle_timeout: Seconds to wait for the response, and then for the next data.
        limits: Limits of the log.
    """

    stream_url: str = field(repr=False)
    websocket_url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    connect_timeout: float
    idle_timeout: float
    limits: StreamLimits

    def stream_headers(self) -> dict[str, str]:
        """Make the headers of the HTTP stream.

        Returns:
            The headers; they forbid compression, because a compressing proxy would buffer the lines.
        """
        return {**self.headers, "accept-encoding": "identity"}

    def websocket_headers(self) -> dict[str, str]:
        """Make the headers of the websocket's handshake.

        Returns:
            The headers that the websocket library does not set itself.
        """
        return {name: value for name, value in self.headers.items() if name not in _NOT_FOR_WEBSOCKETS}


def websocket_url(url: str) -> str:
    """Make a websocket's URL.

    Args:
        url: An http or https URL.

    Returns:
        The same with ws or wss.
    """
    return "ws" + url.removeprefix("http")


def check_log_headers(headers: Mapping[str, str]) -> None:
    """Check that a successful response can be a log.

    Args:
        headers: A mapping that ignores case.

    Raises:
        MalformedResponseError: The response is compressed or HTML.
    """
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise MalformedResponseError("malformed answer: packed in a way that was not asked for")
    if headers.get("content-type", "").strip().lower().startswith("text/html"):
        raise MalformedResponseError("malformed answer: HTML")


class IdleTimeout:
    """Calls back when a wait for data takes too long: `with` marks the waits.

    One timer a log, rescheduled only when it fires: a timer for every wait would cost as much as the reading.
    """

    def __init__(self, seconds: float, on_timeout: Callable[[Exception], object]) -> None:
        """Start the timer on the running event loop.

        Args:
            seconds: The longest wait.
            on_timeout: Gets a `TimeoutError`, to be raised where the wait is.
        """
        self._seconds = seconds
        self._on_timeout = on_timeout
        self._loop = asyncio.get_running_loop()
        self._waiting_since: float | None = None
        self._timer = self._loop.call_later(seconds, self._fire)

    def __enter__(self) -> None:
        self._waiting_since = self._loop.time()

    def __exit__(self, *_: object) -> None:
        self._waiting_since = None

    def close(self) -> None:
        """Stop the timer."""
        self._timer.cancel()

    def _fire(self) -> None:
        now = self._loop.time()
        waited = 0.0 if self._waiting_since is None else now - self._waiting_since
        if waited < self._seconds:
            self._timer = self._loop.call_later(self._seconds - waited, self._fire)
        else:
            self._on_timeout(TimeoutError())
