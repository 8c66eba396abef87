"""From Redis to `LiveRuns`: one look at all live runs, then what the scripts publish of their changes."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import structlog
from redis import Redis, RedisError
from redis.asyncio import Redis as AsyncRedis

from shared.channels import job_key
from worker.console.live_runs import LiveRuns
from worker.pre_processor.waitlist import waiting_deadlines
from worker.runs.heartbeat import RUN_PREFIX
from worker.runs.keys import changes_channel, heartbeats_key

log = structlog.get_logger(__name__)

BATCH: Final = 200
"""Records that are read in one go."""

SECONDS_BETWEEN_SNAPSHOTS: Final = 60.0
"""All live runs are looked at this often: pub/sub loses what is published while a connection is down, and
workers of older releases publish no changes."""

SECONDS_BETWEEN_UPDATES: Final = 0.25
"""Browsers hear of changes this often at most, all of them at the same time."""

SECONDS_UNTIL_READ: Final = 0.2
"""The records of runs of which only a change was heard are read together."""

RETRY_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Version:
    """What a browser has heard of."""

    runs: int = 0
    is_connected: bool = False
    """Whether what is shown is up to date: Redis may be away."""
    dead_letters: int = 0
    """How many dead letters were added since the start: a page that shows them looks again."""
    oldest_at: float | None = field(default=None, compare=False)
    """When the oldest change was made that came with this version, where that is known (Redis's clock)."""


class ChangeListener:
    """Keeps `runs` up to date, and says when browsers are to hear of it."""

    def __init__(self, redis: "Redis", subscriber: "AsyncRedis") -> None:
        """`redis` reads records, in threads; `subscriber` has the connection for the channel."""
        self.runs = LiveRuns()
        self.published = Version()
        """What browsers are to hear of."""
        self.clock_ahead = 0.0
        """How many seconds Redis's clock is ahead of this host's."""
        self._redis = redis
        self._subscriber = subscriber
        self._updated = asyncio.Condition()
        self._is_connected = False
        self._dead_letters = 0
        self.heard: Counter[str] = Counter()
        """How many changes were heard, by what they are of."""
        self._oldest_at: float | None = None

    async def run(self) -> None:
        """Listen until cancelled, also when Redis is away for a while."""
        publisher = asyncio.create_task(self._publish())
        try:
            while True:
                try:
                    await self._listen()
                except (RedisError, OSError) as error:
                    log.warning("changes of runs not heard", error_type=type(error).__name__)
                self._is_connected = False
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            publisher.cancel()

    async def newer_than(self, seen: Version) -> Version:
        """What browsers are to hear of next, once it is another than `seen`."""
        async with self._updated:
            await self._updated.wait_for(lambda: self.published != seen)
        return self.published

    def now(self) -> float:
        """The time by Redis's clock, as far as it is known."""
        return time.time() + self.clock_ahead

    async def _listen(self) -> None:
        async with self._subscriber.pubsub(ignore_subscribe_messages=True) as pubsub:
            # Subscribed before the first look, so that nothing is missed between the two.
            await pubsub.subscribe(changes_channel())
            await self._look()
            self._is_connected = True
            look_at = time.monotonic() + SECONDS_BETWEEN_SNAPSHOTS
            read_at = time.monotonic()
            while True:
                # Records are read by this task, too. An older change may be applied after them, and the later
                # ones that were published with it put right what it does.
                message = await pubsub.get_message(timeout=SECONDS_UNTIL_READ)
                if message is not None:
                    self._take(message["data"])
                now = time.monotonic()
                if now >= read_at:
                    await self._read(self.runs.unknown_jobs())
                    read_at = now + SECONDS_UNTIL_READ
                if now >= look_at:
                    await self._look()
                    look_at = now + SECONDS_BETWEEN_SNAPSHOTS

    def _take(self, data: str) -> None:
        """Accept one message of the channel; what cannot be read is of another release or program."""
        with suppress(ValueError, RecursionError):
            change = json.loads(data)
            if not isinstance(change, dict):
                return
            job, at = change.pop("job", None), change.pop("at", None)
            if "dead_letter" in change:
                self._dead_letters += 1
                self.heard["dead_letter"] += 1
            elif isinstance(job, str):
                self.runs.apply(job, change, self.now())
                self.heard["run"] += 1
                if isinstance(at, int | float) and at > 0:
                    self._oldest_at = min(at, self._oldest_at or at)

    async def _look(self) -> None:
        """Look at all live runs; those that are not any more have ended, or are gone."""
        jobs, deadlines, seconds = await asyncio.to_thread(self._find)
        self.clock_ahead = seconds - time.time()
        await self._read(sorted(self.runs.live_jobs() | set(jobs)))
        for job, deadline in deadlines.items():
            if job in jobs:
                self.runs.apply(job, {"waiting_until": str(deadline)}, self.now())

    def _find(self) -> tuple[set[str], dict[str, float], float]:
        members = map(str, self._redis.zrange(heartbeats_key(), 0, -1))
        jobs = {member.removeprefix(RUN_PREFIX) for member in members if member.startswith(RUN_PREFIX)}
        seconds, microseconds = self._redis.time()
        return jobs, waiting_deadlines(self._redis), seconds + microseconds / 1e6

    async def _read(self, jobs: Sequence[str]) -> None:
        for first in range(0, len(jobs), BATCH):
            records = await asyncio.to_thread(self._records, jobs[first : first + BATCH])
            for job, record in records:
                if record:
                    self.runs.apply(job, record, self.now(), is_record=True)
                else:
                    self.runs.remove(job)

    def _records(self, jobs: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
        with self._redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hgetall(job_key(job))
            return zip(jobs, pipe.execute(), strict=True)

    async def _publish(self) -> None:
        while True:
            await asyncio.sleep(SECONDS_BETWEEN_UPDATES)
            version = Version(self.runs.version, self._is_connected, self._dead_letters, self._oldest_at)
            self._oldest_at = None
            if self.published != version:
                async with self._updated:
                    self.published = version
                    self._updated.notify_all()
