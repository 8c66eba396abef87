"""The runs that have ended, by time and status, and what a retry needs of each."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from redis import Redis

from shared.statuses import JobStatus
from worker.lua import redis_time
from worker.runs.keys import ended_run_key, ended_runs_key, failed_tasks_key
from worker.runs.model import kept_seconds
from worker.runs.scripts import run_scripts

PAGE = 100
FORGOTTEN_AT_ONCE = 200
"""Runs that one call of Redis forgets, which takes it about a millisecond."""


@dataclass(frozen=True)
class EndedRun:
    """What is kept of an ended run. `record` is its public record, final; `message` as it was accepted."""

    job: str
    status: JobStatus
    record: dict[str, str]
    message: dict[str, Any]

    @classmethod
    def from_json(cls, job: str, text: str | None) -> Self | None:
        """Read what a script has kept; None for what no release writes."""
        try:
            record: dict[str, str] = json.loads(text or "")
            message = json.loads(record.pop("message", "{}"))
            if not isinstance(message, dict):
                return None
            for name in ("total", "success", "failed"):
                int(record.get(name, 0))
            return cls(job, JobStatus(record["status"]), record, message)
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
            return None

    @property
    def failed(self) -> int:
        """How many of its tasks failed."""
        return int(self.record.get("failed", 0))

    @property
    def task(self) -> str:
        """The Celery task of its message."""
        return str(self.message.get("task"))

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of its message, as it was sent."""
        found = self.message.get("kwargs")
        return found if isinstance(found, dict) else {}

    @property
    def project(self) -> object:
        """The project of its message, None where it has none."""
        params = self.arguments.get("params")
        return params.get("project") if isinstance(params, dict) else None


@dataclass(frozen=True)
class Position:
    """Where a page of ended runs begins: behind all that ended after `time`, and so many that ended then."""

    time: float
    skipped: int

    def __str__(self) -> str:
        return f"{self.time!r}:{self.skipped}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` has made; raises `ValueError` for anything else."""
        if not re.fullmatch(r"[0-9]{1,12}\.[0-9]{1,9}:[0-9]{1,6}", text):
            raise ValueError("no position")
        time, _, skipped = text.partition(":")
        return cls(float(time), int(skipped))


class EndedRuns:
    """Reads what `keep_ended_run` of the scripts about runs has written at the end of each."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._scripts = run_scripts(redis)

    def newest(self, status: JobStatus | None = None, since: float = 0.0) -> Iterator[EndedRun]:
        """Those that ended at `since` (Redis's clock) or later, the last one first; all, or with one status.

        They are read by pages, so what is taken of them costs the same however many there are.
        """
        position: Position | None = None
        while True:
            runs, position = self.page(status, since, position)
            yield from runs
            if position is None:
                return

    def page(
        self, status: JobStatus | None = None, since: float = 0.0, position: Position | None = None
    ) -> tuple[list[EndedRun], Position | None]:
        """Up to `PAGE` of them, from `position` on, and where the next page begins; None where none does."""
        until, skipped = (position.time, position.skipped) if position else ("+inf", 0)
        page: list[tuple[str, float]] = self._redis.zrange(
            ended_runs_key(status or ""),
            until,
            since,
            desc=True,
            byscore=True,
            offset=skipped,
            num=PAGE,
            withscores=True,
        )
        runs = list(self._read([job for job, _ in page], status))
        if len(page) < PAGE:
            return runs, None
        last = page[-1][1]
        at_last = sum(time == last for _, time in page)
        return runs, Position(last, skipped + at_last if last == until else at_last)

    def count(self, status: JobStatus | None = None) -> int:
        """How many there are, of all or with one status."""
        return int(self._redis.zcard(ended_runs_key(status or "")))

    def get(self, job: str) -> EndedRun | None:
        """What is kept of the run of `job`; None when it is unknown, has not ended or is forgotten."""
        return EndedRun.from_json(job, self._redis.get(ended_run_key(job)))

    def failed_tasks(self, job: str, start: int, count: int) -> list[int]:
        """Ids of tasks that failed, in the order in which they did."""
        return [int(each) for each in self._redis.lrange(failed_tasks_key(job), start, start + count - 1)]

    def count_failed_tasks(self, job: str) -> int:
        """How many ids of failed tasks are kept, which are all if all workers of the run kept them."""
        return int(self._redis.llen(failed_tasks_key(job)))

    def trim(self, max_bytes: int, max_age_seconds: float) -> None:
        """Forget those that ended longer ago, and the oldest while all take too much."""
        since = redis_time(self._redis) - max_age_seconds
        arguments = f"{since:.6f}", max_bytes, FORGOTTEN_AT_ONCE, kept_seconds(max_age_seconds)
        while self._scripts.run("forget_ended_runs", [ended_runs_key()], *arguments) == FORGOTTEN_AT_ONCE:
            pass

    def _read(self, jobs: list[str], status: JobStatus | None) -> Iterator[EndedRun]:
        with self._redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.get(ended_run_key(job))
            texts = pipe.execute()
        for job, text in zip(jobs, texts, strict=True):
            run = EndedRun.from_json(job, text)
            if run is not None and status in (None, run.status):
                yield run
