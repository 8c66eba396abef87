"""What comes over either transport, turned into whole lines under the limits. Pure: no sockets, no clock."""

import codecs
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any, Final, Literal, get_args

from worker.platform.errors import ClientError, StreamError, StreamLimitExceededError, ValidationError
from worker.platform.redaction import mask_partial_secret

KB: Final = 1024
MB: Final = 1024 * KB

MAX_STREAM_TIMEOUT_SECONDS: Final = 86_400.0
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


def validate_timeout(stream_timeout: Any) -> float:
    """Seconds, or a `ValidationError`: nothing has been sent then."""
    is_number = isinstance(stream_timeout, int | float) and not isinstance(stream_timeout, bool)
    # Also false for what calls itself a number and is none (nan).
    if is_number and 0 < stream_timeout <= MAX_STREAM_TIMEOUT_SECONDS:
        return float(stream_timeout)
    raise _invalid_argument(
        f"stream_timeout is a number of seconds above 0, at most {MAX_STREAM_TIMEOUT_SECONDS:g}"
    )


def transports_for(protocol: Any) -> tuple[Transport, ...]:
    """What to try, in this order, for `protocol`; a `ValidationError` for one that does not exist."""
    if isinstance(protocol, str) and protocol in _TRANSPORTS:
        return _TRANSPORTS[protocol]
    raise _invalid_argument(f"protocol is one of {', '.join(get_args(StreamProtocol))}")


def _invalid_argument(detail: str) -> ValidationError:
    return ValidationError(f"400 Bad Request: {detail}", 400, detail)


_KEYS = frozenset({"type", "message"})


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """`type` "error" and "complete" end the log; any other only carries its message, or is a sign of life."""

    type: str = ""
    message: str | None = None


def parse_event(text: str) -> StreamEvent | None:
    """`text` as an event, or None where it is a line.

    Strict: a job that prints JSON of its own (`{"type": "error", "epoch": 3}`) keeps its line.
    """
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not value or not value.keys() <= _KEYS:
        return None
    kind = value.get("type")
    return StreamEvent(kind or "", _text(value.get("message"))) if isinstance(kind, str | None) else None


def _text(message: Any) -> str | None:
    if message is None:
        return None
    text = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
    # JSON can spell halves of characters that no encoding can carry further.
    return text.encode(errors="replace").decode()


EVENT_PREFIX: Final = "data:"


class LineSplitter:
    """Joins pieces and cuts them at line ends.

    Only `\\n` ends a line: colours, progress bars (`\\r`) and form feeds stay in it. A line longer than
    `longest` bytes is cut and marked; one that begins like a server-sent event may have `longest_event`,
    since half of its JSON would be worth nothing. No more than that is ever held of a line without an end.
    """

    def __init__(self, max_bytes: int, max_event_bytes: int | None = None) -> None:
        self._longest = max_bytes
        self._longest_event = max_event_bytes or max_bytes
        self._held: list[str] = []
        self._start = ""
        self._length = self._dropped = 0

    def feed(self, text: str) -> list[str]:
        """The lines that `text` ends; what stands behind the last line end is held."""
        *whole, last = text.split("\n")
        lines = []
        if whole and self._held:
            self._hold(whole.pop(0))
            lines.append(self._release())
        lines += [truncate_line(line, self._limit(line)) for line in whole]
        self._hold(last)
        return lines

    def flush(self) -> list[str]:
        """What is held, as a last line; nothing where the text ended with a line end."""
        return [self._release()] if self._held else []

    def _hold(self, piece: str) -> None:
        if not piece:
            return
        self._start = (self._start + piece)[: len(EVENT_PREFIX)]
        room = max(0, self._limit(self._start) - self._length)
        self._held.append(piece[:room])
        self._length += min(room, len(piece))
        if room < len(piece):
            self._dropped += len(piece[room:].encode(errors="replace"))

    def _release(self) -> str:
        line = truncate_line("".join(self._held), self._limit(self._start), self._dropped)
        self._held, self._start, self._length, self._dropped = [], "", 0, 0
        return line

    def _limit(self, line: str) -> int:
        is_event = line.startswith(EVENT_PREFIX) or EVENT_PREFIX.startswith(line)
        return self._longest_event if is_event else self._longest


def truncate_line(line: str, longest: int, dropped: int = 0) -> str:
    """`line` within `longest` bytes: a longer one ends with a mark that says how long it was.

    `dropped` bytes of it were left out before.
    """
    line = line.removesuffix("\r")
    if not dropped and 4 * len(line) <= longest:
        return line
    encoded = line.encode(errors="replace")
    if not dropped and len(encoded) <= longest:
        return line
    mark = f"… [cut: {len(encoded) + dropped} bytes]"
    room = max(0, longest - len(mark.encode()))
    return mask_partial_secret(encoded[:room].decode(errors="ignore")) + mark


MAX_EVENT_BYTES: Final = 4 * MB
"""Bytes of one server-sent event; its message is then cut like any line."""


class LogDecoder:
    """Reads one log: `chunk` takes bytes of HTTP, `message` a websocket's, and both give lines.

    Once it is `over`, no more is to be fed; `failure` says why, None after an agent's "complete".
    """

    def __init__(self, limits: StreamLimits) -> None:
        self._limits = limits
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._http_lines = LineSplitter(limits.max_message_size, MAX_EVENT_BYTES)
        self._message_lines = LineSplitter(limits.max_message_size)
        self._lines = self._bytes = self._messages = 0
        self._ready: list[str] = []
        self._after_event = False
        # Whether messages are pieces of one text (Ray's own frames) or each is a line of its own.
        self._fragmented = False
        self.completed = False
        self.failure: ClientError | None = None

    @property
    def ended(self) -> bool:
        """Whether the log has ended, well or not."""
        return self.completed or self.failure is not None

    def feed_chunk(self, data: bytes) -> list[str]:
        """The lines that these bytes of the chunked stream end."""
        room = self._limits.max_bytes - self._bytes
        self._bytes += len(data)
        self._on_http_lines(self._http_lines.feed(self._decoder.decode(data[:room])))
        if self._bytes > self._limits.max_bytes:
            self._exceed(f"{self._limits.max_bytes} bytes")
        return self._drain()

    def feed_message(self, data: bytes) -> list[str]:
        """The lines of one message of the websocket, in whole or as a piece of a text."""
        text = data.decode(errors="replace")
        event = parse_event(text)
        if event is None or event.type not in ("error", "complete"):
            self._messages += 1
            self._bytes += len(data)
        if self._messages > self._limits.max_messages:
            self._exceed(f"{self._limits.max_messages} messages")
        elif self._bytes > self._limits.max_bytes:
            self._exceed(f"{self._limits.max_bytes} bytes")
        elif event is not None:
            self._on_event(event)
        else:
            # A character may be split between two messages of bytes.
            self._on_text(self._decoder.decode(data))
        return self._drain()

    def flush(self) -> list[str]:
        """What stood behind the last line end when the other side closed in order."""
        if not self.ended:
            self._on_http_lines(self._http_lines.feed(self._decoder.decode(b"", final=True)))
            self._on_http_lines(self._http_lines.flush())
            self._emit(self._message_lines.flush())
        return self._drain()

    def _on_http_lines(self, lines: list[str]) -> None:
        for line in lines:
            if self.ended:
                return
            self._on_http_line(line)

    def _on_http_line(self, line: str) -> None:
        if line.startswith(EVENT_PREFIX):
            payload = line.removeprefix(EVENT_PREFIX).removeprefix(" ")
            self._on_event(parse_event(payload) or StreamEvent(message=payload))
            self._after_event = True
            return
        # Events end with an empty line; any other empty line is the job's.
        if line or not self._after_event:
            self._emit([*self._message_lines.flush(), line])
        self._after_event = False

    def _on_event(self, event: StreamEvent) -> None:
        if event.type not in ("error", "complete"):
            if event.message is not None:
                self._on_text(event.message)
            return
        self._emit(self._message_lines.flush())
        if self.failure is None and event.type == "error":
            self.failure = StreamError(event.message or "the agent ended the log with an error", 500)
        self.completed = self.failure is None

    def _on_text(self, text: str) -> None:
        self._fragmented = self._fragmented or text.endswith("\n")
        self._emit(self._message_lines.feed(text))
        if not self._fragmented:
            self._emit(self._message_lines.flush() or ([""] if not text else []))

    def _emit(self, lines: list[str]) -> None:
        room = self._limits.max_lines - self._lines
        self._ready += lines[:room]
        self._lines += min(room, len(lines))
        if len(lines) > room:
            self._exceed(f"{self._limits.max_lines} lines")

    def _drain(self) -> list[str]:
        given, self._ready = self._ready, []
        return given

    def _exceed(self, limit: str) -> None:
        if not self.ended:
            self.failure = StreamLimitExceededError(f"429 Too Many Requests: the log is longer than {limit}")
