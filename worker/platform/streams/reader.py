"""What comes over either wire, turned into lines under the limits. Pure: no sockets, no threads, no clock."""

import codecs
from typing import Final

from worker.platform.errors import ClientError, StreamError, StreamLimitExceededError
from worker.platform.streams.events import Event, event_of
from worker.platform.streams.limits import MB, StreamLimits
from worker.platform.streams.lines import EVENT_PREFIX, LineSplitter

LONGEST_EVENT: Final = 4 * MB
"""Bytes of one server-sent event; its message is then cut like any line."""


class LogReader:
    """Reads one log: `chunk` takes bytes of HTTP, `message` a websocket's, and both give lines.

    Once it is `over`, no more is to be fed; `failure` says why, None after an agent's "complete".
    """

    def __init__(self, limits: StreamLimits) -> None:
        self._limits = limits
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._wire = LineSplitter(limits.max_message_size, LONGEST_EVENT)
        self._text = LineSplitter(limits.max_message_size)
        self._lines = self._bytes = self._messages = 0
        self._given: list[str] = []
        self._after_event = False
        # Whether messages are pieces of one text (Ray's own frames) or each is a line of its own.
        self._in_pieces = False
        self.completed = False
        self.failure: ClientError | None = None

    @property
    def over(self) -> bool:
        """Whether the log has ended, well or not."""
        return self.completed or self.failure is not None

    def chunk(self, data: bytes) -> list[str]:
        """The lines that these bytes of the chunked stream end."""
        room = self._limits.max_bytes - self._bytes
        self._bytes += len(data)
        self._wire_lines(self._wire.feed(self._decoder.decode(data[:room])))
        if self._bytes > self._limits.max_bytes:
            self._exceed(f"{self._limits.max_bytes} bytes")
        return self._taken()

    def message(self, data: bytes) -> list[str]:
        """The lines of one message of the websocket, in whole or as a piece of a text."""
        text = data.decode(errors="replace")
        event = event_of(text)
        if event is None or event.type not in ("error", "complete"):
            self._messages += 1
            self._bytes += len(data)
        if self._messages > self._limits.max_messages:
            self._exceed(f"{self._limits.max_messages} messages")
        elif self._bytes > self._limits.max_bytes:
            self._exceed(f"{self._limits.max_bytes} bytes")
        elif event is not None:
            self._event(event)
        else:
            # A character may be split between two messages of bytes.
            self._piece(self._decoder.decode(data))
        return self._taken()

    def end(self) -> list[str]:
        """What stood behind the last line end when the other side closed in order."""
        if not self.over:
            self._wire_lines(self._wire.feed(self._decoder.decode(b"", final=True)))
            self._wire_lines(self._wire.end())
            self._give(self._text.end())
        return self._taken()

    def _wire_lines(self, lines: list[str]) -> None:
        for line in lines:
            if self.over:
                return
            self._wire_line(line)

    def _wire_line(self, line: str) -> None:
        if line.startswith(EVENT_PREFIX):
            payload = line.removeprefix(EVENT_PREFIX).removeprefix(" ")
            self._event(event_of(payload) or Event(message=payload))
            self._after_event = True
            return
        # Events end with an empty line; any other empty line is the job's.
        if line or not self._after_event:
            self._give([*self._text.end(), line])
        self._after_event = False

    def _event(self, event: Event) -> None:
        if event.type not in ("error", "complete"):
            if event.message is not None:
                self._piece(event.message)
            return
        self._give(self._text.end())
        if self.failure is None and event.type == "error":
            self.failure = StreamError(event.message or "the agent ended the log with an error", 500)
        self.completed = self.failure is None

    def _piece(self, text: str) -> None:
        self._in_pieces = self._in_pieces or text.endswith("\n")
        self._give(self._text.feed(text))
        if not self._in_pieces:
            self._give(self._text.end() or ([""] if not text else []))

    def _give(self, lines: list[str]) -> None:
        room = self._limits.max_lines - self._lines
        self._given += lines[:room]
        self._lines += min(room, len(lines))
        if len(lines) > room:
            self._exceed(f"{self._limits.max_lines} lines")

    def _taken(self) -> list[str]:
        given, self._given = self._given, []
        return given

    def _exceed(self, limit: str) -> None:
        if not self.over:
            self.failure = StreamLimitExceededError(f"429 Too Many Requests: the log is longer than {limit}")
