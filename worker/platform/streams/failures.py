"""Failures of a websocket as client errors, with nothing of the original: that one knows URL and headers."""

from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from worker.platform.answers import Answer, error_of
from worker.platform.errors import (
    ClientConnectionError,
    ClientError,
    StreamLimitExceededError,
    WebSocketError,
)
from worker.platform.wire import wire_error

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
