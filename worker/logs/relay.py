"""The log relay: tails hundreds of logs on one event loop in every worker that consumes the queue `logs`."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterable
from typing import Any, Final

import structlog
from celery import bootsteps
from redis.asyncio import Redis
from redis.exceptions import RedisError
from structlog.contextvars import bound_contextvars

from shared.messages import TailLogsMessage
from shared.redis_url import read_redis_url
from worker.logs.subscriptions import Claim, ClaimStore
from worker.logs.tailer import AgentLogSource, LogSource, LogTailer
from worker.logs.writer import BufferCapacity, LineBuffer, LogWriter, retry_forever
from worker.platform import clean
from worker.platform.streams import StreamLimits
from worker.services import services

log = structlog.get_logger(__name__)

CLAIM_TTL_SECONDS: Final = 6.0
"""A claim that is not renewed for so long expires, and other relays acquire its log."""

RENEW_INTERVAL_SECONDS: Final = 1.5
POLL_INTERVAL_SECONDS: Final = 2.0
"""A relay that nobody wakes looks so often whether claims have expired."""
BACKLOG_SECONDS: Final = 0.05
"""Between two looks while there is more than a look claims, so that other relays get a part of it."""
RETRY_SECONDS: Final = 0.5
MAX_LOGS: Final = 2_000
MAX_CLAIMS_PER_POLL: Final = 50
"""Few, so that several relays share logs that are subscribed to together."""

RELEASE_TIMEOUT_SECONDS: Final = 3.0
CANCEL_RETRY_SECONDS: Final = 0.3


class LogRelay:
    """Claims logs and tails them until it is cancelled; then it releases its claims for other relays."""

    def __init__(
        self, redis: "Redis", source: LogSource, limits: StreamLimits, retry_budget_seconds: float
    ) -> None:
        """`redis` decodes its answers; a log that is unreachable for `retry_budget_seconds` is closed."""
        self._claim_store = ClaimStore(redis, CLAIM_TTL_SECONDS)
        self._writer = LogWriter(redis, limits)
        self._source = source
        self._limits = limits
        self._retry_budget_seconds = retry_budget_seconds
        self._capacity = BufferCapacity()
        self._claims: dict[str, Claim] = {}
        self._renewed_at = time.monotonic()
        self._tail_tasks: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Relay the logs that are subscribed to."""
        loops = [
            asyncio.create_task(loop)
            for loop in (self._writer.run(), self._renew_claims(), self._acquire_claims())
        ]
        try:
            done, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            for loop in done:
                loop.result()  # raises: a loop ends only by failing
        finally:
            await _cancel_all([*loops, *self._tail_tasks.values()])
            await self._release_claims()

    async def _acquire_claims(self) -> None:
        while True:
            limit = min(MAX_CLAIMS_PER_POLL, MAX_LOGS - len(self._claims))
            try:
                if time.monotonic() - self._renewed_at > CLAIM_TTL_SECONDS / 2:
                    # The loop is held up, such as by hundreds of connections at once. The relay must not take
                    # its own expired claims for those of another one: each log would be read from its start.
                    await self._renew()
                acquired = await self._claim_store.acquire(limit) if limit > 0 else []
                for claim in acquired:
                    self._start_tail(claim)
                if len(self._claims) >= MAX_LOGS:  # tokens are for other relays
                    await asyncio.sleep(POLL_INTERVAL_SECONDS)
                elif len(acquired) == MAX_CLAIMS_PER_POLL:
                    await asyncio.sleep(BACKLOG_SECONDS)
                else:
                    await self._claim_store.wait_for_subscriptions(POLL_INTERVAL_SECONDS)
            except (RedisError, OSError) as error:
                log.warning("log subscriptions not read", error_type=type(error).__name__)
                await asyncio.sleep(RETRY_SECONDS)

    def _start_tail(self, claim: Claim) -> None:
        name = claim.subscription.name
        # This relay may still hold an expired claim on the log, such as after the machine slept.
        self._stop_tail(name)
        self._claims[name] = claim
        self._tail_tasks[name] = asyncio.create_task(self._tail_log(claim))

    async def _renew_claims(self) -> None:
        while True:
            await asyncio.sleep(RENEW_INTERVAL_SECONDS)
            try:
                await self._renew()
            except (RedisError, OSError) as error:
                log.warning("log claims not renewed", error_type=type(error).__name__)

    async def _renew(self) -> None:
        started = time.monotonic()
        for name in await self._claim_store.renew(dict(self._claims)):
            log.warning("log claim lost", subscription=name)
            self._stop_tail(name)
        self._renewed_at = started

    def _stop_tail(self, name: str) -> None:
        self._claims.pop(name, None)
        task = self._tail_tasks.pop(name, None)
        if task is not None:
            task.cancel()

    async def _tail_log(self, claim: Claim) -> None:
        subscription = claim.subscription
        with bound_contextvars(job=subscription.job, ray_job=subscription.ray_job):
            try:
                await self._tail_to_end(claim)
            except Exception as error:
                # The claim is not renewed any more and expires, so a relay tries the log again.
                log.error("log tail failed", error_type=type(error).__name__, error=clean(str(error)))
            # A cancelled task leaves its claim here, because `_release_claims` has to release it.
            if self._claims.get(subscription.name) is claim:
                del self._claims[subscription.name], self._tail_tasks[subscription.name]

    async def _tail_to_end(self, claim: Claim) -> None:
        resume_point = await retry_forever(lambda: self._claim_store.claim_log(claim))
        if resume_point is not None:
            log.info("log tail started", position=resume_point.position, fencing_token=claim.fencing_token)
            max_lines = self._limits.queue_size
            buffer = LineBuffer(claim, resume_point.position, max_lines, self._capacity, self._writer.notify)
            with contextlib.closing(buffer):
                tailer = LogTailer(claim, resume_point, buffer, self._source, self._retry_budget_seconds)
                closure = await tailer.tail_to_end()
            if closure is None:
                return
            await retry_forever(
                lambda: self._claim_store.close_log(claim, closure.reason, closure.final_line)
            )
            log.info("log closed", reason=closure.reason, position=buffer.position)
        await retry_forever(lambda: self._claim_store.release(claim, log_closed=True))

    async def _release_claims(self) -> None:
        claims, self._claims = list(self._claims.values()), {}
        # Claims that cannot be released expire by themselves, only later.
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(RELEASE_TIMEOUT_SECONDS):
                for claim in claims:
                    await self._claim_store.release(claim, log_closed=False)
                if claims:
                    await self._claim_store.wake_relay()


async def _cancel_all(tasks: Iterable["asyncio.Task[None]"]) -> None:
    # Repeated, because `asyncio.wait_for` of Python 3.11, which the Redis client uses, can swallow a
    # cancellation.
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_RETRY_SECONDS)


STOP_TIMEOUT_SECONDS: Final = 5.0
RESTART_DELAY_SECONDS: Final = 1.0
MAX_REDIS_CONNECTIONS: Final = 5
"""One of them waits for subscriptions."""


class LogRelayStep(bootsteps.StartStopStep):
    """Runs the relay's event loop in a thread, independently of the broker's connection."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._main_task: asyncio.Task[None] | None = None

    def include_if(self, parent: Any) -> bool:
        """Only in workers that consume the queue of `tail_logs`."""
        return TailLogsMessage.queue in parent.app.amqp.queues.consume_from

    def start(self, parent: Any) -> None:  # noqa: ARG002 - the bootstep's signature
        """Start the relay with the worker."""
        self._loop = new_event_loop()
        self._main_task = self._loop.create_task(_run_forever())
        self._thread = threading.Thread(
            target=self._run_loop, args=(self._loop, self._main_task), name="log-relay"
        )
        self._thread.daemon = True
        self._thread.start()

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - the bootstep's signature
        """Cancel the relay, which releases its claims so that other relays continue its logs at once."""
        if self._loop is None or self._main_task is None or self._thread is None:
            return
        with contextlib.suppress(RuntimeError):  # its thread has just closed the loop
            self._loop.call_soon_threadsafe(self._main_task.cancel)
        self._thread.join(STOP_TIMEOUT_SECONDS)

    terminate = stop

    @staticmethod
    def _run_loop(loop: asyncio.AbstractEventLoop, main_task: "asyncio.Task[None]") -> None:
        try:
            loop.run_until_complete(asyncio.wait([main_task]))
        finally:
            loop.close()


def new_event_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed, because it is faster; it comes with Ray Serve."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _run_forever() -> None:
    while True:
        try:
            await run_log_relay()
        except Exception as error:
            # Its logs are claimed again, by this relay or another, and continue where they stand.
            log.error(
                "log relay failed", error_type=type(error).__name__, error=clean(str(error)), exc_info=True
            )
        await asyncio.sleep(RESTART_DELAY_SECONDS)


async def run_log_relay() -> None:
    """Run one relay with this process's settings until it is cancelled."""
    settings = services().settings
    pool = read_redis_url(settings.redis_url).async_pool(
        max_connections=MAX_REDIS_CONNECTIONS,
        timeout=None,
        decode_responses=True,
        socket_timeout=5,
        socket_connect_timeout=3,
    )
    source = AgentLogSource(services())
    retry_budget_seconds = settings.worker_log_patience_seconds
    try:
        async with Redis.from_pool(pool) as redis:
            await LogRelay(redis, source, services().stream_limits, retry_budget_seconds).run()
    finally:
        source.close()
