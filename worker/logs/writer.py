"""The lines of all followed logs on their way into Redis: a bounded buffer a log, many lines in one call."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final, TypeVar

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.channels import RETENTION_SECONDS, logs_channel
from worker.logs.subscriptions import Claim
from worker.platform.streams import StreamLimits
from worker.runs.events import MESSAGE_HEADROOM, SCRIPT, log_keys, now
from worker.runs.scripts import run_scripts

log = structlog.get_logger(__name__)

T = TypeVar("T")

RETRY_SECONDS: Final = 0.5


async def insist(operation: Callable[[], Awaitable[T]]) -> T:
    """Call `operation`, which is safe to repeat, until Redis has answered."""
    while True:
        try:
            return await operation()
        except (RedisError, OSError) as error:
            log.warning("Redis does not answer", error_type=type(error).__name__)
        await asyncio.sleep(RETRY_SECONDS)


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


CALL_LINES: Final = 500
CALL_CHARACTERS: Final = 128 * 1024
"""One call holds Redis up: about ten milliseconds for 250 lines of as many logs on a busy machine."""

GATHER_SECONDS: Final = 0.005
"""Lines that come so shortly after each other travel together, so that a call is shared by many logs."""

ENOUGH_LINES: Final = 100
"""A feed with so many is not kept waiting."""

PAUSE_SECONDS: Final = 0.2
"""Between two attempts while Redis does not take lines."""

LEVEL: Final = "info"


class Outlet:
    """One task sends; whoever has lines says so.

    A call that got no answer is sent again: the script knows by the position what it has taken already.
    """

    def __init__(self, redis: "Redis", limits: StreamLimits) -> None:
        self._scripts = run_scripts(redis)
        self._limits = limits
        # In the order in which they came; a feed that is there already keeps its place.
        self._waiting: dict[Feed, None] = {}
        self._work = asyncio.Event()

    def wake(self, feed: Feed) -> None:
        """`feed` has lines."""
        self._waiting[feed] = None
        self._work.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._work.wait()
            if not any(feed.has(ENOUGH_LINES) for feed in self._waiting):
                await asyncio.sleep(GATHER_SECONDS)
            batches = self._batches()
            try:
                await self._send(batches)
            except (RedisError, OSError) as error:
                log.warning("lines wait for Redis", error_type=type(error).__name__)
                await asyncio.sleep(PAUSE_SECONDS)
            for feed in batches:
                if feed.waits:
                    self._waiting[feed] = None
            if not self._waiting:
                self._work.clear()

    def _batches(self) -> dict[Feed, list[str]]:
        """The lines of the next call; the feeds that they come from leave the row."""
        batches: dict[Feed, list[str]] = {}
        lines, characters = CALL_LINES, CALL_CHARACTERS
        while self._waiting and lines > 0 and characters > 0:
            feed = next(iter(self._waiting))
            del self._waiting[feed]
            if feed.waits:
                batch = batches[feed] = feed.batch(lines, characters)
                lines -= len(batch)
                characters -= sum(map(len, batch))
        return batches

    async def _send(self, batches: dict[Feed, list[str]]) -> None:
        if not batches:
            return
        limits = self._limits
        longest = limits.max_lines + MESSAGE_HEADROOM
        keys: list[bytes] = []
        arguments: list[bytes | str | int] = ["relay", "", longest, RETENTION_SECONDS, now(), LEVEL]
        arguments += [limits.max_lines, limits.max_bytes]
        for feed, lines in batches.items():
            keys += feed.keys
            arguments += feed.names
            arguments += (feed.position, len(lines), *lines)
        answers = await self._scripts.run(SCRIPT, keys, *arguments)
        refused = ""
        for feed, answer in zip(batches, answers, strict=True):
            if isinstance(answer, str):
                refused = answer
            else:
                feed.answered(answer)
        if refused:
            raise RedisError(refused)
