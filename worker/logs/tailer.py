"""Tail one log from where it stands to its end, over as many connections as that takes."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from shared.statuses import is_final_status
from worker.logs.subscriptions import Beginning, Booking, Claim
from worker.logs.writer import LIMIT, Feed
from worker.platform import (
    AgentClient,
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    NotFoundError,
    redact,
)
from worker.platform.errors import StreamLimitExceededError
from worker.platform.streams import AsyncLogTail
from worker.services import Services

FIRST_SECONDS: Final = 0.2
LONGEST_SECONDS: Final = 5.0


class Patience:
    """Waits grow with every failure in a row, and after `seconds` of failures there is no more of it."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._failures = 0
        self._since: float | None = None

    def reached(self) -> None:
        """All is well again."""
        self._failures, self._since = 0, None

    def nothing_new(self) -> None:
        """No failure, but no reason for the next attempt to come at once."""
        self._failures += 1

    def failed(self, at_most: float | None = None) -> bool:
        """One more failure; False when it was the last that is borne, `at_most` seconds for this kind."""
        self._failures += 1
        now = self._clock()
        self._since = now if self._since is None else self._since
        longest = self._seconds if at_most is None else min(at_most, self._seconds)
        return now - self._since < longest

    def wait(self) -> float:
        """Seconds until the next attempt. Not the same for all, for an agent restarts under all of them."""
        longest = min(LONGEST_SECONDS, FIRST_SECONDS * 2.0 ** min(self._failures, 10))
        return longest * random.uniform(0.5, 1.0)


QUIET_SECONDS: Final = 120.0
"""A job may print nothing for long; after this the agent is asked whether it still runs. (That a machine is
gone the kernel finds out within a minute.)"""

THREADS: Final = 8


class LogSource(Protocol):
    """Opens logs and knows how their jobs are. Raises `ClientError`."""

    async def tail(self, booking: Booking, beginning: Beginning) -> AsyncLogTail:
        """The log from its first line on."""
        ...

    async def status(self, booking: Booking, beginning: Beginning) -> str:
        """Ray's word for how the job is."""
        ...


class AgentLogs:
    """Implements `LogSource` with the agents of this process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="agent-logs")

    async def tail(self, booking: Booking, beginning: Beginning) -> AsyncLogTail:
        client = await self._client(beginning)
        return client.log_tail(booking.ray_job, QUIET_SECONDS, beginning.protocol)

    async def status(self, booking: Booking, beginning: Beginning) -> str:
        client = await self._client(beginning)
        loop = asyncio.get_running_loop()
        job = await loop.run_in_executor(self._threads, client.get_job, booking.ray_job)
        return str(job.get("status"))

    def close(self) -> None:
        """Let go of the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _client(self, beginning: Beginning) -> AgentClient:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._look_up, beginning.agent)

    def _look_up(self, agent: int | None) -> AgentClient:
        settings = self._services.settings
        wanted = agent if agent is not None else settings.worker_agent
        if wanted is None and settings.synapse_agent_url is None:
            raise ClientConnectionError("no agent is named, and none is configured (SYNAPSE_AGENT_URL)")
        client = self._services.agent(wanted or 0)
        if client is None:
            raise ClientConnectionError(f"agent {wanted} is not known or has no URL")
        return client


log = structlog.get_logger(__name__)

ENDED, STOPPED, UNREACHABLE = "ended", "stopped", "unreachable"
"""Why there is no more of a log, beside `LIMIT`."""

UNKNOWN_SECONDS: Final = 30.0
"""How long an agent may not know the job: its log may be asked for a moment before the job is submitted."""

STEADY_SECONDS: Final = 10.0
"""A connection that lasted so long was a good one, even if nothing came over it."""


@dataclass(frozen=True, slots=True)
class Ending:
    """No more will come, and why; `last_word` is for whoever reads the log."""

    reason: str
    last_word: str = ""


class Following:
    """One log on its way into `feed`. A connection begins at the first line; what was taken is skipped."""

    def __init__(
        self, claim: Claim, beginning: Beginning, feed: Feed, source: LogSource, patience: float
    ) -> None:
        self._booking = claim.booking
        self._beginning = beginning
        self._feed = feed
        self._source = source
        self._patience = Patience(patience, time.monotonic)
        self._skip = 0
        # Known before the log is read, so that what is read is all of it.
        self._status = ""

    async def to_the_end(self) -> Ending | None:
        """How it ended; None when another relay has taken over."""
        while True:
            started = time.monotonic()
            try:
                ending = await self._read()
            except StreamLimitExceededError as error:
                await self._feed.drained()
                return self._limit(str(error))
            except ClientError as error:
                if time.monotonic() - started > STEADY_SECONDS and not self._status:
                    self._patience.reached()
                if not await self._bears(error):
                    await self._feed.drained()
                    return Ending(UNREACHABLE, self._word(f"it cannot be reached ({error})"))
            else:
                if self._feed.ended:
                    return self._limit("the job's logs are longer") if self._feed.ended == LIMIT else None
                if ending is not None:
                    return ending
            await asyncio.sleep(self._patience.wait())

    async def _read(self) -> Ending | None:
        """One connection; an ending when the log was read to its end."""
        tail = await self._source.tail(self._booking, self._beginning)
        try:
            await self._relay(tail)
        except ClientTimeoutError:
            # What came from a job that was over before was all of it, though nobody closed the line.
            if not (self._status and self._feed.taken) or self._skip:
                raise
        if self._status and tail.rest is not None:
            await self._put([tail.rest])
        if not await self._feed.drained():
            return None
        if self._status or tail.completed:
            return Ending(STOPPED if await self._was_stopped() else ENDED)
        # The agent merely closed the line. If the job is over, once more, to read what came meanwhile.
        await self._ask_status()
        self._patience.nothing_new()
        return None

    async def _ask_status(self) -> None:
        status = await self._source.status(self._booking, self._beginning)
        self._status = status if is_final_status(status) else ""

    async def _relay(self, tail: AsyncLogTail) -> None:
        self._skip = self._feed.taken
        async with contextlib.aclosing(tail.batches()) as batches:
            async for batch in batches:
                if not await self._put(batch):
                    return

    async def _put(self, lines: list[str]) -> bool:
        skipped = min(self._skip, len(lines))
        self._skip -= skipped
        if skipped == len(lines):
            return True
        self._patience.reached()
        return await self._feed.put([redact(line) for line in lines[skipped:]])

    async def _was_stopped(self) -> bool:
        if not self._status:
            # The log is complete all the same when nobody says how the job ended.
            with contextlib.suppress(ClientError):
                await self._ask_status()
        return self._status == "STOPPED"

    async def _bears(self, error: ClientError) -> bool:
        """Whether to try again."""
        if isinstance(error, ClientTimeoutError):
            # Nothing came for long. No failure, where the agent says that the job just has nothing to say.
            was_over = bool(self._status)
            with contextlib.suppress(ClientError):
                await self._ask_status()
                if not was_over:
                    self._patience.reached()
                    return True
        log.info("log not reached", error_type=type(error).__name__, error=str(error))
        return self._patience.failed(UNKNOWN_SECONDS if isinstance(error, NotFoundError) else None)

    def _limit(self, why: str) -> Ending:
        return Ending(LIMIT, self._word(f"its limit is reached ({why})"))

    def _word(self, why: str) -> str:
        return f"The log of {self._booking.ray_job} is not followed further: {why}."
