"""Where a job's log streams from, what connections have in common, and their failures as client errors."""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import httpx
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from worker.platform.errors import (
    ClientConnectionError,
    ClientError,
    MalformedResponseError,
    StreamError,
    StreamLimitExceededError,
    WebSocketError,
)
from worker.platform.responses import Answer, error_of
from worker.platform.streams.parser import StreamLimits
from worker.platform.transport import wire_error

_KEEPALIVE: Final = (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


class LogConnection(Protocol):
    """A log that has not been opened yet."""

    def batches(self) -> Generator[list[str]]:
        """Open it and read it to its end; raises `ClientError`."""
        ...

    def close(self) -> None:
        """Give everything back; whoever waits for lines gets `StreamError`. Safe from any thread."""
        ...


def closed_error() -> StreamError:
    """For a reader whose connection was closed under its hands."""
    return StreamError("500 Internal Server Error: the stream was closed on this side", 500)


def keep_alive(sock: socket.socket | None) -> None:
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
    connect: float
    silence: float
    limits: StreamLimits

    def timeout(self) -> httpx.Timeout:
        """For httpx."""
        return httpx.Timeout(self.silence, connect=min(self.connect, self.silence), pool=None)

    def stream_headers(self) -> dict[str, str]:
        """Unpacked: a proxy that packs the stream would hold its lines back."""
        return {**self.headers, "accept-encoding": "identity"}

    def websocket_headers(self) -> dict[str, str]:
        """For a handshake."""
        return {name: value for name, value in self.headers.items() if name not in _NOT_FOR_WEBSOCKETS}


def websocket_url(url: str) -> str:
    """The same address under the scheme of websockets."""
    return "ws" + url.removeprefix("http")


def check_is_log(headers: Mapping[str, str]) -> None:
    """Refuse a successful answer that cannot be a log."""
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise MalformedResponseError("malformed answer: packed in a way that was not asked for")
    if headers.get("content-type", "").strip().lower().startswith("text/html"):
        raise MalformedResponseError("malformed answer: HTML")


def may_fall_back(error: ClientError) -> bool:
    """Whether another protocol may do what failed with `error` before a line had come."""
    # What the agent itself said of the log (a plain StreamError), and limits, hold for either protocol.
    return not isinstance(error, StreamLimitExceededError) and type(error) is not StreamError


def websocket_missing() -> WebSocketError:
    """For an environment without `websockets`."""
    detail = "websockets are not available: the package websockets is not installed"
    return WebSocketError(f"500 Internal Server Error: {detail}", 500, detail)


_IN_ORDER = frozenset({1000, 1005})
_GOING_AWAY = frozenset({1001, 1012, 1013, 1014})
_TOO_BIG = 1009


def closed_in_order(error: Exception) -> bool:
    """Whether the agent simply had no more to say. Whether the job has ended is another question."""
    return isinstance(error, ConnectionClosed) and error.rcvd is not None and error.rcvd.code in _IN_ORDER


def websocket_error(error: Exception) -> ClientError:
    """The client error for what `websockets` raised."""
    if isinstance(error, ConnectionClosed):
        return _closed(error)
    if isinstance(error, InvalidStatus):
        return _refused(error)
    if isinstance(error, WebSocketException) and not isinstance(error.__cause__, EOFError | OSError):
        return WebSocketError("500 Internal Server Error: the agent does not speak websocket here", 500)
    return wire_error(error)


def _closed(error: ConnectionClosed) -> ClientError:
    if error.sent is not None and error.sent.code == _TOO_BIG and error.rcvd_then_sent is not True:
        return StreamLimitExceededError("429 Too Many Requests: one message is longer than the whole limit")
    if error.rcvd is None or error.rcvd.code in _GOING_AWAY:
        return ClientConnectionError("503 Service Unavailable: the connection was lost", 503)
    said = f"the agent closed the websocket ({error.rcvd.code}): {error.rcvd.reason}"
    return WebSocketError(f"500 Internal Server Error: {said}", 500, error.rcvd.reason)


def _refused(error: InvalidStatus) -> ClientError:
    response = error.response
    if 200 <= response.status_code < 300:
        detail = "the agent answered the handshake as if it were an ordinary request"
        return WebSocketError(f"500 Internal Server Error: {detail}", 500, detail)
    headers = {name.lower(): value for name, value in response.headers.raw_items()}
    return error_of(Answer(response.status_code, headers, bytes(response.body or b"")))


class Silence:
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
