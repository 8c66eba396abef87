"""Follow one log from where it stands to its end, over as many connections as that takes."""

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Final

import structlog

from worker.logs.bookings import Beginning, Claim
from worker.logs.feed import LIMIT, Feed
from worker.logs.patience import Patience
from worker.logs.sources import LogSource
from worker.platform import ClientError, ClientTimeoutError, NotFoundError, redact
from worker.platform.errors import StreamLimitExceededError
from worker.platform.streams import AsyncLogTail

log = structlog.get_logger(__name__)

ENDED, STOPPED, UNREACHABLE = "ended", "stopped", "unreachable"
"""Why there is no more of a log, beside `LIMIT`."""

FINAL: Final = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})

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
        self._status = status if status in FINAL else ""

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
