"""Text that comes in pieces, given back in whole lines of a bounded length."""

from typing import Final

from worker.platform.redaction import mask_cut

EVENT_PREFIX: Final = "data:"


class LineSplitter:
    """Joins pieces and cuts them at line ends.

    Only `\\n` ends a line: colours, progress bars (`\\r`) and form feeds stay in it. A line longer than
    `longest` bytes is cut and marked; one that begins like a server-sent event may have `longest_event`,
    since half of its JSON would be worth nothing. No more than that is ever held of a line without an end.
    """

    def __init__(self, longest: int, longest_event: int | None = None) -> None:
        self._longest = longest
        self._longest_event = longest_event or longest
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
        lines += [cut(line, self._limit(line)) for line in whole]
        self._hold(last)
        return lines

    def end(self) -> list[str]:
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
        line = cut("".join(self._held), self._limit(self._start), self._dropped)
        self._held, self._start, self._length, self._dropped = [], "", 0, 0
        return line

    def _limit(self, line: str) -> int:
        is_event = line.startswith(EVENT_PREFIX) or EVENT_PREFIX.startswith(line)
        return self._longest_event if is_event else self._longest


def cut(line: str, longest: int, dropped: int = 0) -> str:
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
    return mask_cut(encoded[:room].decode(errors="ignore")) + mark
