"""Decodes a log, from bytes or messages to whole lines, within limits. Pure: no sockets, no clock."""

import codecs
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Final, Literal, get_args

from worker.platform.errors import ClientError, StreamError, StreamLimitExceededError, ValidationError
from worker.platform.requests import Json, too_deep
from worker.platform.streams.lines import EVENT_PREFIX, LineSplitter

KB: Final = 1024
MB: Final = 1024 * KB

MAX_STREAM_TIMEOUT_SECONDS: Final = 86_400.0
"""A day; more is taken for a mistake."""

StreamProtocol = Literal["stream", "websocket", "auto"]
"""How a caller wants a log: chunked HTTP, a websocket, or a websocket with chunked HTTP as the fallback."""

Transport = Literal["stream", "websocket"]
"""How one connection transfers a log."""

_TRANSPORTS: Final[Mapping[str, tuple[Transport, ...]]] = {
    "stream": ("stream",),
    "websocket": ("websocket",),
    "auto": ("websocket", "stream"),
}


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Limits of one log; the defaults are the Ray client's document's.

    Attributes:
        max_messages: Websocket messages, without the one that ends the log. More raise
            `StreamLimitExceededError`.
        max_lines: Lines. More raise `StreamLimitExceededError`.
        max_bytes: Bytes as received. More raise `StreamLimitExceededError`.
        max_message_size: Bytes of one line. A longer one is truncated and marked.
        queue_size: Lines that a synchronous client reads ahead of a slow reader.

    Raises:
        ValueError: A limit is not an integer from 1.
    """

    max_messages: int = 10_000
    max_lines: int = 50_000
    max_bytes: int = 50 * MB
    max_message_size: int = 10 * KB
    queue_size: int = 1_000

    def __post_init__(self) -> None:
        if not all(isinstance(each, int) and each >= 1 for each in astuple(self)):
            raise ValueError("the limits of a stream are whole numbers from 1")


def validate_timeout(stream_timeout: object) -> float:
    """Check a caller's timeout before anything is sent.

    Args:
        stream_timeout: Seconds, above 0 and at most a day.

    Returns:
        The seconds as a float.

    Raises:
        ValidationError: It is anything else.
    """
    is_boolean = isinstance(stream_timeout, bool)
    # The comparison is false for nan, too.
    if (
        isinstance(stream_timeout, int | float)
        and 0 < stream_timeout <= MAX_STREAM_TIMEOUT_SECONDS
        and not is_boolean
    ):
        return float(stream_timeout)
    raise _invalid_argument(
        f"stream_timeout is a number of seconds above 0, at most {MAX_STREAM_TIMEOUT_SECONDS:g}"
    )


def transports_for(protocol: object) -> tuple[Transport, ...]:
    """Look up the transports to try for a protocol, before anything is sent.

    Args:
        protocol: One of `StreamProtocol`.

    Returns:
        The transports in the order in which they are tried.

    Raises:
        ValidationError: There is no such protocol.
    """
    if isinstance(protocol, str) and protocol in _TRANSPORTS:
        return _TRANSPORTS[protocol]
    raise _invalid_argument(f"protocol is one of {', '.join(get_args(StreamProtocol))}")


def _invalid_argument(detail: str) -> ValidationError:
    return ValidationError(f"400 Bad Request: {detail}", 400, detail)


_EVENT_KEYS = frozenset({"type", "message"})


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """An event of the agent (platform-api: `{"type"?, "message"?}`).

    Attributes:
        type: "error" and "complete" end the log. Any other type, also an empty one, has no meaning.
        message: Text of the log, or None for an event that only keeps the connection alive.
    """

    type: str = ""
    message: str | None = None


def parse_event(text: str) -> StreamEvent | None:
    """Tell events from a job's own output.

    Args:
        text: A websocket message or the data of a server-sent event.

    Returns:
        The event, or None if the text belongs to the log. JSON that a job prints, such as
        `{"type": "error", "epoch": 3}`, is no event: an event has no other keys than `type` and `message`.
    """
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not value or not value.keys() <= _EVENT_KEYS or too_deep(text, value):
        return None
    kind = value.get("type")
    return StreamEvent(kind or "", _text(value.get("message"))) if isinstance(kind, str | None) else None


def _text(message: Json) -> str | None:
    if message is None:
        return None
    text = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
    # JSON can contain lone surrogates, which UTF-8 cannot encode.
    return text.encode(errors="replace").decode()


MAX_EVENT_BYTES: Final = 4 * MB
"""Limit of one server-sent event; its message is then truncated like any line."""


class LogDecoder:
    """Decodes one log: from the chunks of an HTTP stream, or from the messages of a websocket.

    Feed it no more once it has `ended`.

    Attributes:
        completed: Whether the agent said that the log is complete.
        failure: Why the log ended early: an error event of the agent, or a limit.
    """

    def __init__(self, limits: StreamLimits) -> None:
        """Begin with an empty log.

        Args:
            limits: Those of the lines, messages and bytes.
        """
        self._limits = limits
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._http_lines = LineSplitter(limits.max_message_size, MAX_EVENT_BYTES)
        self._message_lines = LineSplitter(limits.max_message_size)
        self._lines = self._bytes = self._messages = 0
        self._ready: list[str] = []
        self._after_event = False
        # Whether messages are pieces of one text (as Ray itself sends them) or each is a line of its own.
        self._fragmented = False
        self.completed = False
        self.failure: ClientError | None = None

    @property
    def ended(self) -> bool:
        """Whether the log has ended, completely or with a failure."""
        return self.completed or self.failure is not None

    def feed_chunk(self, data: bytes) -> list[str]:
        """Decode bytes of the chunked HTTP stream.

        Args:
            data: The next bytes, split anywhere.

        Returns:
            The lines that they complete.
        """
        remaining = self._limits.max_bytes - self._bytes
        self._bytes += len(data)
        self._on_http_lines(self._http_lines.feed(self._decoder.decode(data[:remaining])))
        if self._bytes > self._limits.max_bytes:
            self._exceed(f"{self._limits.max_bytes} bytes")
        return self._drain()

    def feed_message(self, data: bytes) -> list[str]:
        """Decode a message of the websocket.

        Args:
            data: The whole message: an event, a line, or a piece of the text.

        Returns:
            The lines that it completes.
        """
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
        """End the log after the agent closed the connection properly.

        Returns:
            The rest behind the last line end.
        """
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
        remaining = self._limits.max_lines - self._lines
        self._ready += lines[:remaining]
        self._lines += min(remaining, len(lines))
        if len(lines) > remaining:
            self._exceed(f"{self._limits.max_lines} lines")

    def _drain(self) -> list[str]:
        given, self._ready = self._ready, []
        return given

    def _exceed(self, limit: str) -> None:
        if not self.ended:
            self.failure = StreamLimitExceededError(f"429 Too Many Requests: the log is longer than {limit}")
