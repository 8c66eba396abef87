"""The lines of one followed log between the agent and Redis: a bounded queue that knows how far Redis is."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from worker.logs.bookings import Claim

BATCH_LINES: Final = 500
BATCH_CHARACTERS: Final = 128 * 1024
"""One call of the script holds Redis up for about a millisecond at most."""


class Feed:
    """`position` lines are in Redis; `ended` says why no more of them will be: "limit" or "lost"."""

    def __init__(self, claim: Claim, position: int, room: int, wake: Callable[["Feed"], None]) -> None:
        self.claim = claim
        self.position = position
        self.ended = ""
        self._room = room
        self._wake = wake
        self._pending: deque[str] = deque()
        self._moved = asyncio.Event()

    @property
    def taken(self) -> int:
        """Lines of the log that need not be put again."""
        return self.position + len(self._pending)

    @property
    def waits(self) -> bool:
        """Whether there is something to send."""
        return bool(self._pending) and not self.ended

    async def put(self, lines: Sequence[str]) -> bool:
        """Add lines and wait until there is room for more; False when they go nowhere."""
        self._pending.extend(lines)
        self._wake(self)
        await self._until(self._room)
        return not self.ended

    async def drained(self) -> bool:
        """Wait until Redis has everything; False when it takes no more."""
        await self._until(0)
        return not self.ended

    def batch(self) -> list[str]:
        """The next lines to send. They stay here until they are `sent`."""
        size = 0
        lines: list[str] = []
        for line in islice(self._pending, BATCH_LINES):
            size += len(line)
            if lines and size > BATCH_CHARACTERS:
                break
            lines.append(line)
        return lines

    def sent(self, count: int, ended: str = "") -> None:
        """`count` more lines are in Redis."""
        for _ in range(count):
            self._pending.popleft()
        self.position += count
        self.ended = ended
        self._moved.set()

    async def _until(self, most: int) -> None:
        while len(self._pending) > most and not self.ended:
            self._moved.clear()
            await self._moved.wait()
