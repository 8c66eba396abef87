"""What is done of a run: one bit a task, one member a chunk. In Redis, or in memory for a direct call."""

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from redis import Redis

from shared.channels import job_key
from shared.statuses import TaskFailure
from worker.lua import Scripts
from worker.runs.keys import run_key
from worker.runs.model import Lease
from worker.runs.store import RunStore


def catalogue_key(job: str) -> str:
    """Hash: how far the ids are collected, how many chunks they make, which was handed out last."""
    return f"{job_key(job)}:to_task:catalogue"


def chunks_key(job: str) -> str:
    """Hash: a chunk's ids, joined by commas, under its number; gone when the chunk is done."""
    return f"{job_key(job)}:to_task:chunks"


def seen_key(job: str) -> str:
    """Set: ids and links met while pages are read; deleted after the last page."""
    return f"{job_key(job)}:to_task:seen"


def done_key(job: str) -> str:
    """Bitmap: one bit a task, by its position."""
    return f"{job_key(job)}:to_task:done"


def done_chunks_key(job: str) -> str:
    """Set: numbers of the chunks that are done."""
    return f"{job_key(job)}:to_task:done_chunks"


def open_key(job: str) -> str:
    """Sorted set: chunks that are handed out, by when; by infinity once their message is out."""
    return f"{job_key(job)}:to_task:open"


def failures_key(job: str) -> str:
    """List: the first failure records."""
    return f"{job_key(job)}:to_task:failures"


def attempts_key(job: str) -> str:
    """Hash: position of an undone task to the number of attempts that count."""
    return f"{job_key(job)}:to_task:attempts"


def tickets_key(job: str) -> str:
    """Hash: position of an undone task to the ticket of its deferred inference."""
    return f"{job_key(job)}:to_task:tickets"


ALL = (
    catalogue_key,
    chunks_key,
    seen_key,
    done_key,
    done_chunks_key,
    open_key,
    failures_key,
    attempts_key,
    tickets_key,
)


def own_all(store: RunStore, job: str) -> None:
    """Let all of them expire with the run; to be called before the first of them is written."""
    store.expire_with_run(job, *(key(job) for key in ALL))


MOST_FAILURES = 1_000
"""Failure records that are kept; the count stays exact."""


@dataclass(frozen=True)
class Ticket:
    """A deferred inference: what to poll with, and the model that was asked."""

    ticket: str
    model: object = None


@dataclass(frozen=True)
class OpenTask:
    """A task that is not done. `position` is its place in the whole run."""

    position: int
    task_id: int
    attempts: int = 0
    ticket: Ticket | None = None


@dataclass(frozen=True)
class Mark:
    """What came of a task: annotated, or failed with an `error` that users read."""

    position: int
    task_id: int
    error: str | None = None


@dataclass(frozen=True)
class Counts:
    """Exact numbers of tasks."""

    success: int
    failed: int
    total: int

    @property
    def percent(self) -> float:
        """How much of the annotation is done."""
        return 100.0 * (self.success + self.failed) / self.total if self.total else 0.0


class Ledger(Protocol):
    """One run's. Every task counts once, however often it is recorded. Safe for threads."""

    def is_over(self) -> bool:
        """Whether the run has ended: nothing may be annotated any more."""

    def open_tasks(self, chunk: int) -> list[OpenTask]:
        """What of a chunk is not done."""

    def record(self, marks: Sequence[Mark]) -> bool:
        """What came of tasks; False when the run is over."""

    def keep_ticket(self, position: int, ticket: Ticket | None) -> None:
        """The task's inference runs on; None: it has been collected."""

    def count_attempts(self, positions: Sequence[int]) -> list[int]:
        """One more attempt at each, that counts; returns how many there were of each."""

    def counts(self) -> Counts:
        """The numbers as they are now."""

    def failures(self) -> list[TaskFailure]:
        """The first failure records."""


SECONDS_TO_SEND = 5.0
"""A chunk that was handed out and not sent for so long is handed out again."""


class RedisLedger:
    """The ledger of the run of `job`. Every change is one script, and none is made after the run's end.

    `lease`: of the chunk that is worked. With it goes the right to annotate anything: who was suspended for
    so long that another has the chunk would write all of it once more.
    """

    def __init__(self, redis: "Redis", job: str, lease: Lease | None = None) -> None:
        self._redis = redis
        self._job = job
        self._lease = lease
        self._run = run_key(job)
        self._store = RunStore(redis)
        self._scripts = Scripts(redis, "worker.to_task")

    def is_over(self) -> bool:
        """See `Ledger`."""
        lease = self._lease
        if lease is not None and self._redis.get(lease.key) != lease.token:
            return True
        return self._store.has_ended(self._job)

    def open_tasks(self, chunk: int) -> list[OpenTask]:
        """See `Ledger`."""
        hashes = (catalogue_key, chunks_key, done_key, attempts_key, tickets_key)
        flat = self._scripts.run("open_tasks", [key(self._job) for key in hashes], chunk)
        rows = zip(*[iter(flat)] * 4, strict=True)
        return [
            OpenTask(int(position), int(task_id), int(attempts), _ticket(ticket))
            for position, task_id, attempts, ticket in rows
        ]

    def record(self, marks: Sequence[Mark]) -> bool:
        """See `Ledger`."""
        kinds = (done_key, failures_key, attempts_key, tickets_key)
        names = [self._run, job_key(self._job), *(key(self._job) for key in kinds)]
        arguments: list[str | int] = [MOST_FAILURES]
        for mark in marks:
            failure = "" if mark.error is None else _failure(mark)
            arguments += [mark.position, failure]
        return bool(self._scripts.run("record", names, *arguments))

    def keep_ticket(self, position: int, ticket: Ticket | None) -> None:
        """See `Ledger`."""
        value = "" if ticket is None else json.dumps([ticket.ticket, ticket.model])
        self._scripts.run("note", [self._run, tickets_key(self._job)], position, value)

    def count_attempts(self, positions: Sequence[int]) -> list[int]:
        """See `Ledger`."""
        names = [self._run, attempts_key(self._job)]
        return [int(count) for count in self._scripts.run("count_attempts", names, *positions)]

    def counts(self) -> Counts:
        """See `Ledger`."""
        found = self._redis.hmget(job_key(self._job), ["success", "failed", "total"])
        return Counts(*(int(number or 0) for number in found))

    def failures(self) -> list[TaskFailure]:
        """See `Ledger`."""
        found = self._redis.lrange(failures_key(self._job), 0, -1)
        return [TaskFailure.model_validate_json(each) for each in found]

    def take_untold(self, most: int) -> list[TaskFailure]:
        """Those of the run's first `most` failures that were not taken before."""
        names = [self._run, catalogue_key(self._job), failures_key(self._job)]
        found = self._scripts.run("take_untold", names, most)
        return [TaskFailure.model_validate_json(each) for each in found]

    def chunk_done(self, chunk: int) -> bool:
        """The chunk is done; True when all are, also for whoever asks again."""
        kinds = (catalogue_key, chunks_key, done_chunks_key, open_key)
        names = [self._run, *(key(self._job) for key in kinds)]
        return bool(self._scripts.run("chunk_done", names, chunk))

    def all_done(self) -> bool:
        """Whether every chunk is done."""
        chunks = self._redis.hget(catalogue_key(self._job), "chunks")
        return int(self._redis.scard(done_chunks_key(self._job))) == int(chunks or 0)

    def next_chunks(self, window: int, *, again: bool = False) -> list[int]:
        """Chunks to send now, so that `window` are open; `again`: all that are open, sent or not."""
        names = [self._run, catalogue_key(self._job), open_key(self._job)]
        numbers = self._scripts.run("next_chunks", names, window, SECONDS_TO_SEND, int(again))
        return [int(number) for number in numbers]

    def sent(self, chunk: int) -> None:
        """The chunk's message is out."""
        self._redis.zadd(open_key(self._job), {str(chunk): float("inf")}, xx=True)


def _ticket(stored: str) -> Ticket | None:
    return Ticket(*json.loads(stored)) if stored else None


def _failure(mark: Mark) -> str:
    return TaskFailure(task_id=mark.task_id, error=mark.error or "").model_dump_json()


class MemoryLedger:
    """The ledger of these tasks, in chunks of `size`."""

    def __init__(self, task_ids: Sequence[int], size: int) -> None:
        self._ids = list(task_ids)
        self._size = size
        self._done: set[int] = set()
        self._failed = 0
        self._failures: list[TaskFailure] = []
        self._attempts: dict[int, int] = {}
        self._tickets: dict[int, Ticket] = {}
        self._lock = threading.Lock()

    @property
    def chunks(self) -> range:
        """The numbers of the chunks."""
        return range(-(-len(self._ids) // self._size))

    def is_over(self) -> bool:
        """A direct call ends only by itself."""
        return False

    def open_tasks(self, chunk: int) -> list[OpenTask]:
        """See `Ledger`."""
        with self._lock:
            first = chunk * self._size
            return [
                OpenTask(position, task_id, self._attempts.get(position, 0), self._tickets.get(position))
                for position, task_id in enumerate(self._ids[first : first + self._size], start=first)
                if position not in self._done
            ]

    def record(self, marks: Sequence[Mark]) -> bool:
        """See `Ledger`."""
        with self._lock:
            for mark in marks:
                if mark.position in self._done:
                    continue
                self._done.add(mark.position)
                self._tickets.pop(mark.position, None)
                if mark.error is not None:
                    self._failed += 1
                    self._failures.append(TaskFailure(task_id=mark.task_id, error=mark.error))
            del self._failures[MOST_FAILURES:]
        return True

    def keep_ticket(self, position: int, ticket: Ticket | None) -> None:
        """See `Ledger`."""
        with self._lock:
            self._tickets.pop(position, None)
            if ticket is not None:
                self._tickets[position] = ticket

    def count_attempts(self, positions: Sequence[int]) -> list[int]:
        """See `Ledger`."""
        with self._lock:
            for position in positions:
                self._attempts[position] = self._attempts.get(position, 0) + 1
            return [self._attempts[position] for position in positions]

    def counts(self) -> Counts:
        """See `Ledger`."""
        with self._lock:
            return Counts(len(self._done) - self._failed, self._failed, len(self._ids))

    def failures(self) -> list[TaskFailure]:
        """See `Ledger`."""
        with self._lock:
            return list(self._failures)
