"""Where a job's log streams from and how: all that a connection has to know."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from worker.platform.errors import (
    ClientError,
    MalformedResponseError,
    StreamError,
    StreamLimitExceededError,
    WebSocketError,
)
from worker.platform.streams.limits import StreamLimits

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
