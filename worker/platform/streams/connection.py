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
    """Have the kernel notice within a minute that the other machine is gone.

    A ping of the websocket would not do: a slow reader does not read its answer either.
    """
    # A short log is over, and its socket gone or closed, before it comes to this.
    if sock is None:
        return
    with contextlib.suppress(OSError):
        for level, option, value in _keepalive_options():
            sock.setsockopt(level, option, value)


def _keepalive_options() -> list[tuple[int, int, int]]:
    """The options for `setsockopt`; not every system has each."""
    names = [(getattr(socket, name, None), seconds) for name, seconds in _KEEPALIVE]
    known = [(socket.IPPROTO_TCP, option, value) for option, value in names if option is not None]
    return [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), *known]


# What a handshake has to say by itself, or may not say.
_NOT_FOR_WEBSOCKETS = frozenset({"accept", "accept-encoding", "connection", "user-agent"})


@dataclass(frozen=True, slots=True)
class StreamTarget:
    """The addresses of one log. `silence` is the longest wait in seconds: to get in, then between data."""

    stream_url: str = field(repr=False)
    websocket_url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    connect_timeout: float
    idle_timeout: float
    limits: StreamLimits

    def stream_headers(self) -> dict[str, str]:
        """Unpacked: a proxy that packs the stream would hold its lines back."""
        return {**self.headers, "accept-encoding": "identity"}

    def websocket_headers(self) -> dict[str, str]:
        """For a handshake."""
        return {name: value for name, value in self.headers.items() if name not in _NOT_FOR_WEBSOCKETS}


def websocket_url(url: str) -> str:
    """The same address under the scheme of websockets."""
    return "ws" + url.removeprefix("http")


def check_log_headers(headers: Mapping[str, str]) -> None:
    """Refuse a successful answer that cannot be a log."""
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise MalformedResponseError("malformed answer: packed in a way that was not asked for")
    if headers.get("content-type", "").strip().lower().startswith("text/html"):
        raise MalformedResponseError("malformed answer: HTML")


class IdleTimeout:
    """Calls `expire` when whoever waits has waited for `seconds`.

    One timer a log, set anew only when it rings: one for every line costs as much as reading the line.
    """

    def __init__(self, seconds: float, expire: Callable[[Exception], object]) -> None:
        self._seconds = seconds
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._timer = self._loop.call_later(seconds, self._ring)

    def __enter__(self) -> None:
        """Somebody waits now."""
        self._since = self._loop.time()

    def __exit__(self, *_: object) -> None:
        """Something came. What is done with it takes as long as it takes."""
        self._since = None

    def close(self) -> None:
        """Nobody will wait any more."""
        self._timer.cancel()

    def _ring(self) -> None:
        now = self._loop.time()
        left = self._seconds if self._since is None else self._since + self._seconds - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._ring)
        else:
            self._expire(TimeoutError())
