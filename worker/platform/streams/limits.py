"""How much of a log one stream carries, and when it gives up waiting."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any, Final, Literal, get_args

from worker.platform.errors import ValidationError

KB: Final = 1024
MB: Final = 1024 * KB

LONGEST_TIMEOUT: Final = 86_400.0
"""Seconds. A longer silence than a day is a mistake of whoever wrote the number."""

StreamProtocol = Literal["stream", "websocket", "auto"]
Transport = Literal["stream", "websocket"]

_TRANSPORTS: Final[Mapping[str, tuple[Transport, ...]]] = {
    "stream": ("stream",),
    "websocket": ("websocket",),
    "auto": ("websocket", "stream"),
}


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Limits of one stream. Beyond the first three it ends with `StreamLimitExceededError`."""

    max_messages: int = 10_000
    """Messages of a websocket; the one that ends the stream does not count."""
    max_lines: int = 50_000
    max_bytes: int = 50 * MB
    """As they come over the wire."""
    max_message_size: int = 10 * KB
    """Bytes of a line; a longer one is cut and marked."""
    queue_size: int = 1_000
    """Lines read ahead of a slow reader."""

    def __post_init__(self) -> None:
        if not all(isinstance(each, int) and each >= 1 for each in astuple(self)):
            raise ValueError("the limits of a stream are whole numbers from 1")


def checked_timeout(stream_timeout: Any) -> float:
    """Seconds, or a `ValidationError`: nothing has been sent then."""
    is_number = isinstance(stream_timeout, int | float) and not isinstance(stream_timeout, bool)
    # Also false for what calls itself a number and is none (nan).
    if is_number and 0 < stream_timeout <= LONGEST_TIMEOUT:
        return float(stream_timeout)
    raise _refusal(f"stream_timeout is a number of seconds above 0, at most {LONGEST_TIMEOUT:g}")


def transports_of(protocol: Any) -> tuple[Transport, ...]:
    """What to try, in this order, for `protocol`; a `ValidationError` for one that does not exist."""
    if isinstance(protocol, str) and protocol in _TRANSPORTS:
        return _TRANSPORTS[protocol]
    raise _refusal(f"protocol is one of {', '.join(get_args(StreamProtocol))}")


def _refusal(detail: str) -> ValidationError:
    return ValidationError(f"400 Bad Request: {detail}", 400, detail)
