"""The relay: follows hundreds of logs on one event loop, and takes over what other relays left behind."""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from structlog.contextvars import bound_contextvars

from worker.logs.bookings import Claim, Claims
from worker.logs.feed import Feed, Room
from worker.logs.following import Following
from worker.logs.insist import insist
from worker.logs.outlet import Outlet
from worker.logs.sources import LogSource
from worker.platform import clean
from worker.platform.streams import StreamLimits

log = structlog.get_logger(__name__)

CLAIM_SECONDS: Final = 6.0
"""A relay that gives no sign of life for so long has lost its logs to the others."""

RENEW_SECONDS: Final = 1.5
LOOK_SECONDS: Final = 0.5
MOST_LOGS: Final = 2_000
A_LOOK: Final = 50
"""Logs taken at a time, so that several relays share what was booked together."""

GOODBYE_SECONDS: Final = 3.0
CANCEL_SECONDS: Final = 0.3


class Relay:
    """Runs until cancelled; then others may have its logs at once."""

    def __init__(self, redis: "Redis", source: LogSource, limits: StreamLimits, patience: float) -> None:
        """`redis` decodes its answers; `patience` is for how many seconds a log may be out of reach."""
        self._claims = Claims(redis, CLAIM_SECONDS)
        self._outlet = Outlet(redis, limits)
        self._source = source
        self._limits = limits
        self._patience = patience
        self._room = Room()
        self._held: dict[str, Claim] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Follow what is booked."""
        parts = [asyncio.create_task(part) for part in (self._outlet.run(), self._keep(), self._look())]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()  # none ends but by failing
        finally:
            await _end([*parts, *self._tasks.values()])
            await self._say_goodbye()

    async def _look(self) -> None:
        while True:
            taken: list[Claim] = []
            room = min(A_LOOK, MOST_LOGS - len(self._held))
            try:
                taken = await self._claims.take(room) if room > 0 else []
            except (RedisError, OSError) as error:
                log.warning("bookings not read", error_type=type(error).__name__)
            for claim in taken:
                self._take_on(claim)
            await asyncio.sleep(LOOK_SECONDS if len(taken) < A_LOOK else LOOK_SECONDS / 10)

    def _take_on(self, claim: Claim) -> None:
        name = claim.booking.name
        # Its own claim may have run out while the machine slept.
        self._drop(name)
        self._held[name] = claim
        self._tasks[name] = asyncio.create_task(self._follow(claim))

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                lost = await self._claims.renew(dict(self._held))
            except (RedisError, OSError) as error:
                log.warning("claims not renewed", error_type=type(error).__name__)
                continue
            for name in lost:
                log.warning("log lost to another relay", booking=name)
                self._drop(name)

    def _drop(self, name: str) -> None:
        self._held.pop(name, None)
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()

    async def _follow(self, claim: Claim) -> None:
        booking = claim.booking
        with bound_contextvars(job=booking.job, ray_job=booking.ray_job):
            try:
                await self._follow_to_the_end(claim)
            except Exception as error:
                # It is not renewed any more, so it comes round again, here or elsewhere.
                log.error("following failed", error_type=type(error).__name__, error=clean(str(error)))
            # Not when cancelled: the goodbye wants to know what was held.
            if self._held.get(booking.name) is claim:
                del self._held[booking.name], self._tasks[booking.name]

    async def _follow_to_the_end(self, claim: Claim) -> None:
        beginning = await insist(lambda: self._claims.begin(claim))
        if beginning is not None:
            log.info("following", position=beginning.position, claim=claim.number)
            most = self._limits.queue_size
            feed = Feed(claim, beginning.position, most, self._room, self._outlet.wake)
            with contextlib.closing(feed):
                following = Following(claim, beginning, feed, self._source, self._patience)
                ending = await following.to_the_end()
            if ending is None:
                return
            await insist(lambda: self._claims.close(claim, ending.reason, ending.last_word))
            log.info("log over", reason=ending.reason, position=feed.position)
        await insist(lambda: self._claims.let_go(claim, over=True))

    async def _say_goodbye(self) -> None:
        held, self._held = list(self._held.values()), {}
        # The claims run out by themselves, only later.
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                for claim in held:
                    await self._claims.let_go(claim, over=False)


async def _end(tasks: Iterable["asyncio.Task[None]"]) -> None:
    # More than once: before Python 3.12 `asyncio.wait_for`, which the Redis client uses, can swallow it.
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_SECONDS)
