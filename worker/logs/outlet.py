"""Puts the lines of all followed logs into Redis: many lines of many logs in one call of the script."""

import asyncio
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.logs.feed import Feed
from worker.lua import Scripts
from worker.platform.streams import StreamLimits
from worker.runs.events import DAY_SECONDS, ROOM_FOR_MESSAGES, SCRIPT, now

log = structlog.get_logger(__name__)

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
        self._scripts = Scripts(redis, "worker.runs")
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
        longest = limits.max_lines + ROOM_FOR_MESSAGES
        keys: list[bytes] = []
        arguments: list[bytes | str | int] = ["relay", "", longest, DAY_SECONDS, now(), LEVEL]
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
