"""The path of all relayed lines into Redis: a bounded buffer per log, many lines in one script call."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final, TypeVar

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.channels import RETENTION_SECONDS, logs_channel
from worker import metrics
from worker.logs.subscriptions import Claim
from worker.platform.streams import StreamLimits
from worker.runs.events import LOG_SCRIPT, MESSAGE_HEADROOM_ENTRIES, line_time, log_keys
from worker.runs.scripts import run_scripts

log = structlog.get_logger(__name__)

T = TypeVar("T")

CALL_RETRY_SECONDS: Final = 0.5


async def retry_forever(operation: Callable[[], Awaitable[T]]) -> T:
    """Call `operation`, which must be safe to repeat, until Redis answers."""
    while True:
        try:
            return await operation()
        except (RedisError, OSError) as error:
            log.warning("redis unavailable", error_type=type(error).__name__)
        await asyncio.sleep(CALL_RETRY_SECONDS)


MAX_BUFFERED_LINES: Final = 10_000
MAX_BUFFERED_CHARS: Final = 16 * 1024 * 1024

LIMIT: Final = "limit"
"""The job's limit of relayed lines or bytes is reached."""

CLAIM_LOST: Final = "claim lost"
"""Another relay writes this log now."""


class BufferCapacity:
    """The capacity that all line buffers share: it bounds a relay's memory and slows reading to the speed of
    writing."""

    def __init__(self, lines: int = MAX_BUFFERED_LINES, characters: int = MAX_BUFFERED_CHARS) -> None:
        self._free_lines, self._free_characters = lines, characters
        self._released = asyncio.Event()

    @property
    def exhausted(self) -> bool:
        """Whether readers must wait."""
        return self._free_lines <= 0 or self._free_characters <= 0

    def acquire(self, lines: Sequence[str]) -> None:
        """Count `lines` as buffered. It may exceed the capacity by one batch of each reader."""
        self._free_lines -= len(lines)
        self._free_characters -= sum(map(len, lines))

    def release(self, lines: Sequence[str]) -> None:
        """Count `lines` as no longer buffered."""
        self._free_lines += len(lines)
        self._free_characters += sum(map(len, lines))
        self._released.set()

    async def wait_for_release(self) -> None:
        """Wait until lines are released."""
        self._released.clear()
        await self._released.wait()


class LineBuffer:
    """The lines of one log that are read but not yet in Redis.

    `position` is the number of lines in Redis. `rejection` is empty until Redis takes no more lines; then it
    is `LIMIT` or `CLAIM_LOST`.
    """

    def __init__(
        self,
        claim: Claim,
        position: int,
        max_lines: int,
        capacity: BufferCapacity,
        notify_writer: Callable[["LineBuffer"], None],
    ) -> None:
        self.position = position
        self.rejection = ""
        # Encoded once, because every call of the script repeats them.
        job, ray_job = claim.subscription.job, claim.subscription.ray_job
        self.keys = [key.encode() for key in log_keys(job)]
        self.log_id = [part.encode() for part in (logs_channel(job), ray_job, claim.fencing_token)]
        self._max_lines = max_lines
        self._capacity = capacity
        self._notify_writer = notify_writer
        self._pending: deque[str] = deque()
        self._in_flight = 0
        self._acknowledged = asyncio.Event()
        self._oldest_at = 0.0

    @property
    def read_position(self) -> int:
        """Lines of the log that need not be read again: those in Redis and those buffered."""
        return self.position + len(self._pending)

    @property
    def has_pending(self) -> bool:
        """Whether there are lines to send."""
        return bool(self._pending) and not self.rejection

    def has_at_least(self, count: int) -> bool:
        """Whether `count` lines are buffered."""
        return len(self._pending) >= count

    async def put(self, lines: Sequence[str]) -> bool:
        """Add lines and wait until there is capacity for more; False when Redis takes no more of them."""
        if not self._pending:
            self._oldest_at = time.monotonic()
        self._pending.extend(lines)
        self._capacity.acquire(lines)
        self._notify_writer(self)
        if len(self._pending) > self._max_lines:
            await self._wait_for_length(self._max_lines)
        while self._capacity.exhausted and not self.rejection:
            await self._capacity.wait_for_release()
        return not self.rejection

    async def flush(self) -> bool:
        """Wait until Redis has all lines; False when it takes no more of them."""
        await self._wait_for_length(0)
        return not self.rejection

    def next_batch(self, max_lines: int, max_characters: int) -> list[str]:
        """The next lines to send, at least one. They stay in the buffer until `acknowledge` is called."""
        lines: list[str] = []
        for line in islice(self._pending, max(max_lines, 1)):
            max_characters -= len(line)
            if lines and max_characters < 0:
                break
            lines.append(line)
        self._in_flight = len(lines)
        return lines

    def acknowledge(self, count: int) -> None:
        """Remove the first `count` lines of the batch: they are in Redis. -1 says that the claim was lost."""
        if count < self._in_flight:
            self.rejection = LIMIT if count >= 0 else CLAIM_LOST
        self._capacity.release([self._pending.popleft() for _ in range(count)])
        self.position += max(count, 0)
        if count > 0:
            metrics.observe_relay(self._oldest_at)
            self._oldest_at = time.monotonic()
        self._acknowledged.set()

    def close(self) -> None:
        """Discard the lines that are not in Redis; the next claim reads them again."""
        self._capacity.release(self._pending)
        self._pending.clear()

    async def _wait_for_length(self, max_length: int) -> None:
        while len(self._pending) > max_length and not self.rejection:
            self._acknowledged.clear()
            await self._acknowledged.wait()


MAX_LINES_PER_CALL: Final = 500
MAX_CHARS_PER_CALL: Final = 128 * 1024
"""A call blocks Redis: for about ten milliseconds with 250 lines of 250 logs on a busy machine."""

BATCH_WINDOW_SECONDS: Final = 0.005
"""How long the writer collects lines before a call, so that many logs share it."""

FULL_BATCH_LINES: Final = 100
"""A log with so many lines is sent without waiting for the batch window."""

WRITE_RETRY_SECONDS: Final = 0.2
"""Pause before the next attempt while Redis takes no lines."""

LEVEL: Final = "info"


class LogWriter:
    """Sends the lines of all buffers to Redis from one task.

    A call without an answer is repeated: by the position, the script skips lines that it has stored already.
    """

    def __init__(self, redis: "Redis", limits: StreamLimits) -> None:
        self._scripts = run_scripts(redis)
        self._limits = limits
        # A queue without duplicates: a buffer that is notified again keeps its place.
        self._queue: dict[LineBuffer, None] = {}
        self._has_work = asyncio.Event()

    def notify(self, buffer: LineBuffer) -> None:
        """Queue `buffer`, which has lines to send."""
        self._queue[buffer] = None
        self._has_work.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._has_work.wait()
            if not any(buffer.has_at_least(FULL_BATCH_LINES) for buffer in self._queue):
                await asyncio.sleep(BATCH_WINDOW_SECONDS)
            batches = self._next_batches()
            try:
                await self._send(batches)
            except (RedisError, OSError) as error:
                log.warning("log write deferred", error_type=type(error).__name__)
                await asyncio.sleep(WRITE_RETRY_SECONDS)
            for buffer in batches:
                if buffer.has_pending:
                    self._queue[buffer] = None
            if not self._queue:
                self._has_work.clear()

    def _next_batches(self) -> dict[LineBuffer, list[str]]:
        """The lines of the next call; their buffers leave the queue."""
        batches: dict[LineBuffer, list[str]] = {}
        lines_left, characters_left = MAX_LINES_PER_CALL, MAX_CHARS_PER_CALL
        while self._queue and lines_left > 0 and characters_left > 0:
            buffer = next(iter(self._queue))
            del self._queue[buffer]
            if buffer.has_pending:
                batch = batches[buffer] = buffer.next_batch(lines_left, characters_left)
                lines_left -= len(batch)
                characters_left -= sum(map(len, batch))
        return batches

    async def _send(self, batches: dict[LineBuffer, list[str]]) -> None:
        if not batches:
            return
        limits = self._limits
        history_entries = limits.max_lines + MESSAGE_HEADROOM_ENTRIES
        keys: list[bytes] = []
        arguments: list[bytes | str | int] = ["append_lines", "", history_entries, RETENTION_SECONDS]
        arguments += [line_time(), LEVEL, limits.max_lines, limits.max_bytes]
        for buffer, lines in batches.items():
            keys += buffer.keys
            arguments += buffer.log_id
            arguments += (buffer.position, len(lines), *lines)
        answers = await self._scripts.run(LOG_SCRIPT, keys, *arguments)
        error = ""
        for buffer, answer in zip(batches, answers, strict=True):
            if isinstance(answer, str):
                error = answer
            else:
                buffer.acknowledge(answer)
        if error:
            raise RedisError(error)
