"""The relay: tails hundreds of logs on one event loop in every worker that consumes the queue `logs`."""

import asyncio
import contextlib
import threading
from collections.abc import Iterable
from typing import Any, Final

import structlog
from celery import bootsteps
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError
from structlog.contextvars import bound_contextvars

from shared.messages import TailLogsMessage
from worker.logs.subscriptions import Claim, Claims
from worker.logs.tailer import AgentLogs, Following, LogSource
from worker.logs.writer import Feed, Outlet, Room, insist
from worker.platform import clean
from worker.platform.streams import StreamLimits
from worker.services import services

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


STOP_SECONDS: Final = 5.0
RESTART_SECONDS: Final = 1.0
CONNECTIONS: Final = 4


class RelayStep(bootsteps.StartStopStep):
    """Runs the relay's event loop in a thread. It does not depend on the broker's connection."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._main: asyncio.Task[None] | None = None

    def include_if(self, parent: Any) -> bool:
        """Only where bookings come in."""
        return TailLogsMessage.queue in parent.app.amqp.queues.consume_from

    def start(self, parent: Any) -> None:  # noqa: ARG002 - the bootstep's signature
        """The worker is up."""
        self._loop = new_event_loop()
        self._main = self._loop.create_task(_run_for_ever())
        self._thread = threading.Thread(target=self._run, args=(self._loop, self._main), name="log-relay")
        self._thread.daemon = True
        self._thread.start()

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - the bootstep's signature
        """The worker goes down: other relays may have the logs at once."""
        if self._loop is None or self._main is None or self._thread is None:
            return
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._main.cancel)
        self._thread.join(STOP_SECONDS)

    terminate = stop

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop, main: "asyncio.Task[None]") -> None:
        try:
            loop.run_until_complete(asyncio.wait([main]))
        finally:
            loop.close()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """The quicker one where it is installed: it comes with Ray Serve."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _run_for_ever() -> None:
    while True:
        try:
            await run_relay()
        except Exception as error:
            # Its logs are taken on again, by this relay or another, where they stand.
            log.error("relay failed", error_type=type(error).__name__, error=clean(str(error)), exc_info=True)
        await asyncio.sleep(RESTART_SECONDS)


async def run_relay() -> None:
    """One relay with this process's settings, until cancelled."""
    settings = services().settings
    pool = BlockingConnectionPool.from_url(
        settings.redis_url,
        max_connections=CONNECTIONS,
        timeout=None,
        decode_responses=True,
        socket_timeout=5,
        socket_connect_timeout=3,
    )
    source = AgentLogs(services())
    try:
        async with Redis.from_pool(pool) as redis:
            await Relay(redis, source, services().stream_limits, settings.worker_log_patience_seconds).run()
    finally:
        source.close()
