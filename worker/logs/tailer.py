"""Tails one log from its resume point to its end, over as many connections as that takes."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from shared.messages import JsonObject
from worker.logs.subscriptions import Claim, ResumePoint, Subscription
from worker.logs.writer import LIMIT, LineBuffer
from worker.platform import (
    AgentClient,
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    NotFoundError,
    clean,
    redact,
)
from worker.platform.errors import StreamLimitExceededError
from worker.platform.streams import AsyncLogTail
from worker.runs.bulkhead import backoff
from worker.services import Services

MIN_BACKOFF_SECONDS: Final = 0.2
MAX_BACKOFF_SECONDS: Final = 5.0


class Backoff:
    """Exponential delays between the attempts for one log, and the time budget within which they may fail."""

    def __init__(self, budget_seconds: float, clock: Callable[[], float]) -> None:
        self._budget_seconds = budget_seconds
        self._clock = clock
        self._attempts = 0
        self._failing_since: float | None = None

    def reset(self) -> None:
        """The log is reachable: the next failure is the first again."""
        self._attempts, self._failing_since = 0, None

    def record_attempt(self) -> None:
        """An attempt succeeded but brought nothing new: the next one comes later, the budget stays."""
        self._attempts += 1

    def record_failure(self, budget_seconds: float | None = None) -> bool:
        """Record a failure; False once the budget (for this kind of failure, if given) is spent."""
        self._attempts += 1
        now = self._clock()
        self._failing_since = now if self._failing_since is None else self._failing_since
        budget = self._budget_seconds if budget_seconds is None else min(budget_seconds, self._budget_seconds)
        return now - self._failing_since < budget

    def next_delay(self) -> float:
        """Seconds until the next attempt, with jitter: an agent that restarts loses all its logs at once."""
        delay = backoff(self._attempts, MAX_BACKOFF_SECONDS, first=MIN_BACKOFF_SECONDS)
        return delay * random.uniform(0.5, 1.0)


IDLE_TIMEOUT_SECONDS: Final = 120.0
"""After so long without a line the agent is asked whether the job still runs, because a job may be silent for
longer. (TCP keep-alive notices within a minute that a machine is gone.)"""

MAX_AGENT_THREADS: Final = 8


class LogSource(Protocol):
    """Opens logs and knows the status of their jobs. Raises `ClientError`."""

    async def tail(self, subscription: Subscription, resume_point: ResumePoint) -> AsyncLogTail:
        """Open the log at its first line."""
        ...

    async def job(self, subscription: Subscription, resume_point: ResumePoint) -> JsonObject:
        """Ray's record of the job, with its `status` and `message`."""
        ...


class AgentLogSource:
    """Implements `LogSource` with the agents of this process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        # The agent clients block, and their calls must not hold up the event loop.
        self._threads = ThreadPoolExecutor(MAX_AGENT_THREADS, thread_name_prefix="agent-logs")

    async def tail(self, subscription: Subscription, resume_point: ResumePoint) -> AsyncLogTail:
        client = await self._client(resume_point)
        return client.log_tail(subscription.ray_job, IDLE_TIMEOUT_SECONDS, resume_point.protocol)

    async def job(self, subscription: Subscription, resume_point: ResumePoint) -> JsonObject:
        client = await self._client(resume_point)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, client.get_job, subscription.ray_job)

    def close(self) -> None:
        """Shut the threads down."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _client(self, resume_point: ResumePoint) -> AgentClient:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._find_client, resume_point.agent)

    def _find_client(self, requested_agent: int | None) -> AgentClient:
        settings = self._services.settings
        agent = requested_agent if requested_agent is not None else settings.worker_agent
        if agent is None and settings.synapse_agent_url is None:
            raise ClientConnectionError("no agent is named, and none is configured (SYNAPSE_AGENT_URL)")
        client = self._services.agent(agent or 0)
        if client is None:
            raise ClientConnectionError(f"agent {agent} is not known or has no URL")
        return client


log = structlog.get_logger(__name__)

ENDED, STOPPED, UNREACHABLE = "ended", "stopped", "unreachable"
"""Why a log has no more lines, beside `LIMIT`."""

FINAL_JOB_STATUSES: Final = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})

DRIVER_LOG: Final = ", last available logs"
"""Behind it Ray repeats the log of a driver that has failed."""
MAX_RAY_MESSAGE_CHARS: Final = 2_000

UNKNOWN_JOB_SECONDS: Final = 30.0
"""How long an agent may not know the job: a log may be subscribed to shortly before its job is submitted."""

FINAL_STATUS_SECONDS: Final = 60.0
"""How long the end of a log that is complete waits for the final status of its job. A cluster that has just
tried to install what a job needs may answer late."""
STILL_RUNNING_SECONDS: Final = 5.0
"""The same while the agent says that the job still runs, although it has marked the end of the log."""

STABLE_CONNECTION_SECONDS: Final = 10.0
"""A connection that lasted so long counts as a success, even if no line came over it."""


@dataclass(frozen=True, slots=True)
class LogClosure:
    """Why the log has no more lines; `final_line` is a line of the relay that explains it to readers."""

    reason: str
    final_line: str = ""


class LogTailer:
    """Reads one log into its buffer.

    Each connection starts at the first line of the log; the lines that were read before are skipped.
    """

    def __init__(
        self,
        claim: Claim,
        resume_point: ResumePoint,
        buffer: LineBuffer,
        source: LogSource,
        retry_budget_seconds: float,
    ) -> None:
        self._subscription = claim.subscription
        self._resume_point = resume_point
        self._buffer = buffer
        self._source = source
        self._backoff = Backoff(retry_budget_seconds, time.monotonic)
        self._lines_to_skip = 0
        # The job's final status, else empty. When it is known before a connection is opened, that connection
        # reads the whole log.
        self._final_status = ""
        self._ray_message = ""

    async def tail_to_end(self) -> LogClosure | None:
        """Read until the log has no more lines; None when another relay has claimed it."""
        while True:
            started = time.monotonic()
            try:
                closure = await self._read_connection()
            except StreamLimitExceededError as error:
                await self._buffer.flush()
                return self._limit_closure(str(error))
            except ClientError as error:
                if time.monotonic() - started > STABLE_CONNECTION_SECONDS and not self._final_status:
                    self._backoff.reset()
                if not await self._may_retry(error):
                    await self._buffer.flush()
                    why = self._final_line(f"it cannot be reached ({error})")
                    return LogClosure(UNREACHABLE, f"{why} {self._failure_line()}".rstrip())
            else:
                if self._buffer.rejection:
                    is_limit = self._buffer.rejection == LIMIT
                    return self._limit_closure("the job's logs are longer") if is_limit else None
                if closure is not None:
                    return closure
            await asyncio.sleep(self._backoff.next_delay())

    async def _read_connection(self) -> LogClosure | None:
        """Read one connection; None when the log may have more lines."""
        tail = await self._source.tail(self._subscription, self._resume_point)
        try:
            await self._read_batches(tail)
        except ClientTimeoutError:
            # A job that ended before this connection writes no more lines: the log is complete, although the
            # agent left the connection open.
            if not (self._final_status and self._buffer.read_position) or self._lines_to_skip:
                raise
        if self._final_status and tail.partial_line is not None:
            await self._put_new_lines([tail.partial_line])
        if not await self._buffer.flush():
            return None
        if self._final_status or tail.completed:
            await self._await_final_status()
            return LogClosure(STOPPED if self._final_status == "STOPPED" else ENDED, self._failure_line())
        # The agent closed the connection without marking the end of the log. If the job has ended, the next
        # connection reads the lines that were written in between.
        await self._refresh_final_status()
        self._backoff.record_attempt()
        return None

    async def _refresh_final_status(self) -> None:
        job = await self._source.job(self._subscription, self._resume_point)
        status = str(job.get("status"))
        self._final_status = status if status in FINAL_JOB_STATUSES else ""
        self._ray_message = str(job.get("message") or "")

    async def _read_batches(self, tail: AsyncLogTail) -> None:
        self._lines_to_skip = self._buffer.read_position
        async with contextlib.aclosing(tail.batches()) as batches:
            async for batch in batches:
                if not await self._put_new_lines(batch):
                    return

    async def _put_new_lines(self, lines: list[str]) -> bool:
        """Buffer the lines not read before; False when Redis takes no more of them."""
        skipped = min(self._lines_to_skip, len(lines))
        self._lines_to_skip -= skipped
        if skipped == len(lines):
            return True
        self._backoff.reset()
        return await self._buffer.put([redact(line) for line in lines[skipped:]])

    async def _await_final_status(self) -> None:
        """Ask how the job of a complete log ended, which may be all that there is to say about it."""
        attempts = Backoff(FINAL_STATUS_SECONDS, time.monotonic)
        while not self._final_status:
            budget_seconds = STILL_RUNNING_SECONDS
            try:
                await self._refresh_final_status()
            except ClientError:
                budget_seconds = FINAL_STATUS_SECONDS
            # The log is complete even when the agent cannot say how the job ended.
            if self._final_status or not attempts.record_failure(budget_seconds):
                return
            await asyncio.sleep(attempts.next_delay())

    async def _may_retry(self, error: ClientError) -> bool:
        if isinstance(error, ClientTimeoutError):
            # A timeout is no failure when the agent answers: the job is only printing nothing.
            had_ended = bool(self._final_status)
            with contextlib.suppress(ClientError):
                await self._refresh_final_status()
                if not had_ended:
                    self._backoff.reset()
                    return True
        log.info("log unreachable", error_type=type(error).__name__, error=str(error))
        return self._backoff.record_failure(UNKNOWN_JOB_SECONDS if isinstance(error, NotFoundError) else None)

    def _failure_line(self) -> str:
        """Ray's word on a job that failed: one that failed before its driver started has no other."""
        if self._final_status != "FAILED":
            return ""
        why = " ".join(clean(self._ray_message.partition(DRIVER_LOG)[0]).split())
        if len(why) > MAX_RAY_MESSAGE_CHARS:
            # What the installer says stands at the end.
            half = MAX_RAY_MESSAGE_CHARS // 2
            why = f"{why[:half]} … {why[-half:]}"
        return f"The Ray job {self._subscription.ray_job} FAILED{f': {why}' if why else '.'}"

    def _limit_closure(self, why: str) -> LogClosure:
        return LogClosure(LIMIT, self._final_line(f"its limit is reached ({why})"))

    def _final_line(self, why: str) -> str:
        return f"The log of {self._subscription.ray_job} is not followed further: {why}."
