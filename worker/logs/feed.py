"""The lines of one followed log between the agent and Redis: a bounded queue that knows how far Redis is."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from shared.channels import logs_channel
from worker.logs.bookings import Claim
from worker.runs.events import log_keys

ALL_LINES: Final = 10_000
ALL_CHARACTERS: Final = 16 * 1024 * 1024

LIMIT: Final = "limit"
LOST: Final = "lost"


class Room:
    """What all feeds together may hold: memory stays flat, and a relay that is busy reads no faster than it
    writes."""

    def __init__(self, lines: int = ALL_LINES, characters: int = ALL_CHARACTERS) -> None:
        self._lines, self._characters = lines, characters
        self._given = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether whoever has lines waits."""
        return self._lines <= 0 or self._characters <= 0

    def take(self, lines: Sequence[str]) -> None:
        """These are held now."""
        self._lines -= len(lines)
        self._characters -= sum(map(len, lines))

    def give(self, lines: Sequence[str]) -> None:
        """These are not held any more."""
        self._lines += len(lines)
        self._characters += sum(map(len, lines))
        self._given.set()

    async def change(self) -> None:
        """Wait until something was given back."""
        self._given.clear()
        await self._given.wait()


class Feed:
    """`position` lines are in Redis; `ended` says why no more of them will be, empty while they will."""

    def __init__(
        self, claim: Claim, position: int, most: int, room: Room, wake: Callable[["Feed"], None]
    ) -> None:
        self.position = position
        self.ended = ""
        # What the script has to be told with every call, packed once.
        job = claim.booking.job
        self.keys = [key.encode() for key in log_keys(job)]
        self.names = [each.encode() for each in (logs_channel(job), claim.booking.ray_job, claim.number)]
        self._most = most
        self._room = room
        self._wake = wake
        self._pending: deque[str] = deque()
        self._in_flight = 0
        self._moved = asyncio.Event()

    @property
    def taken(self) -> int:
        """Lines of the log that need not be put again."""
        return self.position + len(self._pending)

    @property
    def waits(self) -> bool:
        """Whether there is something to send."""
        return bool(self._pending) and not self.ended

    def has(self, count: int) -> bool:
        """Whether so many lines wait here."""
        return len(self._pending) >= count

    async def put(self, lines: Sequence[str]) -> bool:
        """Add lines and wait until there is room for more; False when they go nowhere."""
        self._pending.extend(lines)
        self._room.take(lines)
        self._wake(self)
        if len(self._pending) > self._most:
            await self._until(self._most)
        while self._room.full and not self.ended:
            await self._room.change()
        return not self.ended

    async def drained(self) -> bool:
        """Wait until Redis has everything; False when it takes no more."""
        await self._until(0)
        return not self.ended

    def batch(self, most: int, characters: int) -> list[str]:
        """The next lines to send, one at least. They stay here until Redis has `answered`."""
        lines: list[str] = []
        for line in islice(self._pending, max(most, 1)):
            characters -= len(line)
            if lines and characters < 0:
                break
            lines.append(line)
        self._in_flight = len(lines)
        return lines

    def answered(self, count: int) -> None:
        """`count` lines of the batch are in Redis, -1 when it does not take them from here any more."""
        if count < self._in_flight:
            self.ended = LIMIT if count >= 0 else LOST
        self._room.give([self._pending.popleft() for _ in range(count)])
        self.position += max(count, 0)
        self._moved.set()

    def close(self) -> None:
        """Forget what is not in Redis; whoever goes on reads it again."""
        self._room.give(self._pending)
        self._pending.clear()

    async def _until(self, most: int) -> None:
        while len(self._pending) > most and not self.ended:
            self._moved.clear()
            await self._moved.wait()
