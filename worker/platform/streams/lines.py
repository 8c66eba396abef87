"""Splits a log into lines, and truncates those that are too long."""

from typing import Final

from worker.platform.redaction import mask_partial_secret

EVENT_PREFIX: Final = "data:"


class LineSplitter:
    """Joins pieces of text and splits them into lines.

    Only `\\n` ends a line: colours, progress bars (`\\r`) and form feeds stay in it. A line that is too long
    is truncated and marked, and no more of a line without an end than its limit is kept in memory.
    """

    def __init__(self, max_bytes: int, max_event_bytes: int | None = None) -> None:
        """Begin with an empty text.

        Args:
            max_bytes: Bytes of a line, at most.
            max_event_bytes: The same for a line that begins like a server-sent event, by default `max_bytes`.
                It should be larger, because truncated JSON cannot be parsed.
        """
        self._max_bytes = max_bytes
        self._max_event_bytes = max_event_bytes or max_bytes
        self._pieces: list[str] = []
        self._start = ""
        self._kept_chars = self._dropped_bytes = 0

    def feed(self, text: str) -> list[str]:
        """Add text.

        Args:
            text: The next piece.

        Returns:
            The lines that it completes. What follows the last line end is kept.
        """
        *whole, last = text.split("\n")
        lines = []
        if whole and self._pieces:
            self._keep(whole.pop(0))
            lines.append(self._release())
        lines += [truncate_line(line, self._limit(line)) for line in whole]
        self._keep(last)
        return lines

    def flush(self) -> list[str]:
        """End the text.

        Returns:
            The last line, if the text does not end with a line end.
        """
        return [self._release()] if self._pieces else []

    def _keep(self, piece: str) -> None:
        if not piece:
            return
        self._start = (self._start + piece)[: len(EVENT_PREFIX)]
        remaining = max(0, self._limit(self._start) - self._kept_chars)
        self._pieces.append(piece[:remaining])
        self._kept_chars += min(remaining, len(piece))
        if remaining < len(piece):
            self._dropped_bytes += len(piece[remaining:].encode(errors="replace"))

    def _release(self) -> str:
        line = truncate_line("".join(self._pieces), self._limit(self._start), self._dropped_bytes)
        self._pieces, self._start, self._kept_chars, self._dropped_bytes = [], "", 0, 0
        return line

    def _limit(self, line: str) -> int:
        is_event = line.startswith(EVENT_PREFIX) or EVENT_PREFIX.startswith(line)
        return self._max_event_bytes if is_event else self._max_bytes


def truncate_line(line: str, max_bytes: int, dropped_bytes: int = 0) -> str:
    """Truncate a line that is too long.

    Args:
        line: A line without its line end; a carriage return at its end is removed.
        max_bytes: Bytes of the result in UTF-8, at most, unless the mark alone is longer.
        dropped_bytes: Bytes that were already left out at its end.

    Returns:
        The line, or its beginning and a mark that says how long it was.
    """
    line = line.removesuffix("\r")
    if not dropped_bytes and 4 * len(line) <= max_bytes:
        return line
    encoded = line.encode(errors="replace")
    if not dropped_bytes and len(encoded) <= max_bytes:
        return line
    mark = f"… [cut: {len(encoded) + dropped_bytes} bytes]"
    remaining = max(0, max_bytes - len(mark.encode()))
    return mask_partial_secret(encoded[:remaining].decode(errors="ignore")) + mark
