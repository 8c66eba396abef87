"""Puts the lines of all followed logs into Redis: many lines a script call, many calls a round trip."""

import asyncio
from typing import Any, Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

from worker.logs.feed import Feed
from worker.platform.streams import StreamLimits
from worker.runs.log_channel import ROOM_FOR_MESSAGES, SCRIPT, log_args, log_keys, now
from worker.runs.scripts import source_of

log = structlog.get_logger(__name__)

FEEDS_A_ROUND: Final = 250

GATHER_SECONDS: Final = 0.005
"""Lines that come so shortly after each other travel together: a thousand slow logs cost half as much so."""

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
        self._redis = redis
        self._limits = limits
        self._longest = limits.max_lines + ROOM_FOR_MESSAGES
        # In the order in which they came; a feed that is there already keeps its place.
        self._waiting: dict[Feed, None] = {}
        self._work = asyncio.Event()
        self._source = source_of("worker.runs", SCRIPT)
        self._sha = ""

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
            round_ = [feed for feed, _ in zip(self._waiting, range(FEEDS_A_ROUND), strict=False)]
            for feed in round_:
                del self._waiting[feed]
            try:
                refused = await self._send([feed for feed in round_ if feed.waits])
            except (RedisError, OSError) as error:
                refused = error
            for feed in round_:
                if feed.waits:
                    self._waiting[feed] = None
            if not self._waiting:
                self._work.clear()
            if refused is not None:
                log.warning("lines wait for Redis", error_type=type(refused).__name__)
                await asyncio.sleep(PAUSE_SECONDS)

    async def _send(self, feeds: list[Feed]) -> Exception | None:
        if not self._sha:
            self._sha = await self._redis.script_load(self._source)
        time = now()
        async with self._redis.pipeline(transaction=False) as pipe:
            for feed in feeds:
                pipe.execute_command("EVALSHA", self._sha, 3, *self._arguments(feed, time))
            answers = await pipe.execute(raise_on_error=False)
        refused = None
        for feed, answer in zip(feeds, answers, strict=True):
            if isinstance(answer, NoScriptError):
                self._sha = ""
            elif isinstance(answer, Exception):
                refused = answer
            else:
                feed.answered(answer)
        return refused

    def _arguments(self, feed: Feed, time: str) -> list[Any]:
        claim, limits = feed.claim, self._limits
        job, source = claim.booking.job, claim.booking.ray_job
        own: list[str | int] = [source, claim.number, feed.position, time, LEVEL]
        own += [limits.max_lines, limits.max_bytes, *feed.batch()]
        return [*log_keys(job), *log_args("lines", job, *own, longest=self._longest)]
