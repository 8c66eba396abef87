"""What is done of a run: one bit a task, one member a chunk. In Redis; a direct call has it in memory."""

import json
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Protocol

from redis import Redis

from shared.channels import job_key
from shared.statuses import TaskFailure
from worker import metrics
from worker.lua import redis_time
from worker.runs.keys import RunField, run_key
from worker.runs.model import Lease
from worker.runs.scripts import run_scripts
from worker.runs.store import RunStore


def task_index_key(job: str) -> str:
    """Hash: how far the ids are collected, how many chunks they make, which chunk was published last."""
    return f"{job_key(job)}:to_task:catalogue"


def chunks_key(job: str) -> str:
    """Hash: a chunk's ids, joined by commas, under its number; gone when the chunk is done."""
    return f"{job_key(job)}:to_task:chunks"


def seen_key(job: str) -> str:
    """Set: ids and links seen while pages are read; deleted after the last page."""
    return f"{job_key(job)}:to_task:seen"


def done_key(job: str) -> str:
    """Bitmap: one bit a task, by its position."""
    return f"{job_key(job)}:to_task:done"


def done_chunks_key(job: str) -> str:
    """Set: numbers of the chunks that are done."""
    return f"{job_key(job)}:to_task:done_chunks"


def open_key(job: str) -> str:
    """Sorted set: chunks in flight, by the time of the claim, `PUBLISHED`, or infinity once begun."""
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


def polls_key(job: str) -> str:
    """Hash: position of an undone task to the polls of its deferred inference, see `InferencePolls`."""
    return f"{job_key(job)}:to_task:polls"


def plugin_calls_key(job: str) -> str:
    """Hash: chunks whose items go to the plugin one a call, by number; failures in a row, by operation."""
    return f"{job_key(job)}:to_task:plugin_calls"


def slow_key(job: str) -> str:
    """Text: exists while services ask the run for later calls, so that its log says so once."""
    return f"{job_key(job)}:to_task:slow"


ALL = (
    task_index_key,
    chunks_key,
    seen_key,
    done_key,
    done_chunks_key,
    open_key,
    failures_key,
    attempts_key,
    tickets_key,
    polls_key,
    plugin_calls_key,
    slow_key,
)


MAX_FAILURE_RECORDS = 1_000
"""Failure records that are kept; the count of failures stays exact."""


@dataclass(frozen=True)
class Ticket:
    """A deferred inference: the ticket to poll with, and the model of the request."""

    ticket: str
    model: object = None


@dataclass(frozen=True)
class InferencePolls:
    """How a task's deferred inference has been waited for.

    `first_at`: when it was first deferred, by the ledger's clock. `requests`: how often it was requested.
    `not_found`: polls in a row that found no such ticket. `passes`: passes that have polled its ticket.
    """

    first_at: float
    requests: int = 1
    not_found: int = 0
    passes: int = 0


@dataclass(frozen=True)
class OpenTask:
    """A task that is not done. `position` is its index in the whole run."""

    position: int
    task_id: int
    attempts: int = 0
    ticket: Ticket | None = None
    polls: InferencePolls | None = None


@dataclass(frozen=True)
class TaskOutcome:
    """A task is annotated, or has failed with an `error` that users read.

    `was_annotated`: it was before, and was left alone.
    """

    position: int
    task_id: int
    error: str | None = None
    was_annotated: bool = False


@dataclass(frozen=True)
class Counts:
    """Exact numbers of tasks. `skipped`: of the successful ones those that were annotated before."""

    success: int
    failed: int
    total: int
    skipped: int = 0

    @property
    def percent(self) -> float:
        """Percentage of tasks that are done."""
        return 100.0 * (self.success + self.failed) / self.total if self.total else 0.0


class Ledger(Protocol):
    """The ledger of one run. A task counts once, however often it is recorded. Thread-safe."""

    def has_ended(self) -> bool:
        """Whether the run has ended, so that nothing may be annotated any more."""

    def open_tasks(self, chunk: int) -> list[OpenTask]:
        """The tasks of a chunk that are not done."""

    def record(self, outcomes: Sequence[TaskOutcome]) -> bool:
        """Record outcomes; False when the run has ended."""

    def set_ticket(self, position: int, ticket: Ticket | None) -> None:
        """Keep the ticket of a deferred inference; None once its result is here."""

    def set_polls(self, position: int, polls: InferencePolls | None) -> None:
        """Keep how a deferred inference is waited for; None once its result is here."""

    def now(self) -> float:
        """Seconds on the one clock of all workers of the run."""

    def increment_attempts(self, positions: Sequence[int]) -> list[int]:
        """Count one more attempt at each task; returns the counts."""

    def has_single_calls(self, chunk: int) -> bool:
        """Whether the chunk's items go to the plugin one a call."""

    def begin_single_calls(self, chunk: int) -> None:
        """From now on the chunk's items go to the plugin one a call."""

    def count_plugin_failure(self, operation: str) -> int:
        """One more item on which this operation hung or died; how many there are in a row, of all chunks."""

    def reset_plugin_failures(self, operation: str) -> None:
        """The operation has answered: what it hangs or dies on next is the first in a row."""

    def counts(self) -> Counts:
        """The current counts."""

    def failures(self) -> list[TaskFailure]:
        """The first failure records."""


PUBLISH_GRACE_SECONDS = 5.0
"""A chunk that was claimed and not published for so long is handed out again."""
PUBLISHED = 1e15
"""In place of the time of the claim. Workers of older releases write infinity, which is for a begun chunk."""
BEGUN_A_WAITING_CHUNK = 4
"""For so many chunks that have begun one waits in the queue, so that many workers find one at once."""


class RedisLedger:
    """The ledger of the run of `job`. Every change is one script, and none is made after the run's end.

    `lease` is that of the chunk. A process that was suspended beyond its lease has lost the chunk to another
    worker; for it the run counts as ended, or it would write all of the chunk again.
    """

    def __init__(self, redis: "Redis", job: str, lease: Lease | None = None) -> None:
        self._redis = redis
        self._job = job
        self._lease = lease
        self._run = run_key(job)
        self._store = RunStore(redis)
        self._scripts = run_scripts(redis, "worker.to_task")
        self.recorded: list[tuple[int, int]] = []
        """How many tasks this process has recorded as done and as failed, each time."""

    def has_ended(self) -> bool:
        """See `Ledger`."""
        lease, pipe = self._lease, self._redis.pipeline(transaction=False)
        pipe.hmget(self._run, RunField.ENDED, RunField.POSITION)
        pipe.get("" if lease is None else lease.key)
        (ended, position), token = pipe.execute()
        return ended is not None or position is None or (lease is not None and token != lease.token)

    def open_tasks(self, chunk: int) -> list[OpenTask]:
        """See `Ledger`."""
        hashes = (task_index_key, chunks_key, done_key, attempts_key, tickets_key, polls_key)
        flat = self._scripts.run("open_tasks", [key(self._job) for key in hashes], chunk)
        rows = zip(*[iter(flat)] * 5, strict=True)
        return [
            OpenTask(int(position), int(task_id), int(attempts), _ticket(ticket), _polls(polls))
            for position, task_id, attempts, ticket, polls in rows
        ]

    def record(self, outcomes: Sequence[TaskOutcome]) -> bool:
        """See `Ledger`."""
        kinds = (done_key, failures_key, attempts_key, tickets_key, polls_key)
        names = [self._run, job_key(self._job), *(key(self._job) for key in kinds)]
        polls, field = (self._lease and self._lease.deliveries) or (self._run, "")
        arguments: list[str | int] = [MAX_FAILURE_RECORDS, field]
        for mark in outcomes:
            failure = "" if mark.error is None else _failure(mark.task_id, mark.error)
            arguments += [mark.position, mark.task_id, failure, int(mark.was_annotated)]
        is_recorded = bool(self._scripts.run("record", [*names, polls], *arguments))
        if is_recorded:
            failed = sum(outcome.error is not None for outcome in outcomes)
            skipped = sum(outcome.was_annotated for outcome in outcomes)
            metrics.count_annotations(len(outcomes) - failed - skipped, failed)
            self.recorded.append((len(outcomes) - failed, failed))
        return is_recorded

    def set_ticket(self, position: int, ticket: Ticket | None) -> None:
        """See `Ledger`."""
        value = "" if ticket is None else json.dumps([ticket.ticket, ticket.model])
        self._scripts.run("set_field", [self._run, tickets_key(self._job)], position, value)

    def set_polls(self, position: int, polls: InferencePolls | None) -> None:
        """See `Ledger`."""
        value = "" if polls is None else json.dumps(astuple(polls))
        self._scripts.run("set_field", [self._run, polls_key(self._job)], position, value)

    def now(self) -> float:
        """See `Ledger`: Redis's clock."""
        return redis_time(self._redis)

    def increment_attempts(self, positions: Sequence[int]) -> list[int]:
        """See `Ledger`."""
        names = [self._run, attempts_key(self._job)]
        return [int(count) for count in self._scripts.run("increment_attempts", names, *positions)]

    def has_single_calls(self, chunk: int) -> bool:
        """See `Ledger`."""
        return bool(self._redis.hexists(plugin_calls_key(self._job), str(chunk)))

    def begin_single_calls(self, chunk: int) -> None:
        """See `Ledger`."""
        self._scripts.run("set_field", [self._run, self._plugin_calls()], chunk, 1)

    def count_plugin_failure(self, operation: str) -> int:
        """See `Ledger`; 0 when the run has ended."""
        keys = [self._run, self._plugin_calls()]
        return int(next(iter(self._scripts.run("increment_attempts", keys, operation)), 0))

    def reset_plugin_failures(self, operation: str) -> None:
        """See `Ledger`."""
        self._redis.hdel(plugin_calls_key(self._job), operation)

    def _plugin_calls(self) -> str:
        key = plugin_calls_key(self._job)
        # An older worker, which does not know this key, may have begun the run.
        self._store.expire_with_run(self._job, key)
        return key

    def counts(self) -> Counts:
        """See `Ledger`."""
        found = self._redis.hmget(job_key(self._job), ["success", "failed", "total", "skipped"])
        return Counts(*(int(number or 0) for number in found))

    def failures(self) -> list[TaskFailure]:
        """See `Ledger`."""
        found = self._redis.lrange(failures_key(self._job), 0, -1)
        return [TaskFailure.model_validate_json(each) for each in found]

    def pop_unreported_failures(self, most: int) -> list[TaskFailure]:
        """Those of the run's first `most` failures that were not returned before."""
        names = [self._run, task_index_key(self._job), failures_key(self._job)]
        found = self._scripts.run("pop_unreported_failures", names, most)
        return [TaskFailure.model_validate_json(each) for each in found]

    def complete_chunk(self, chunk: int) -> bool:
        """Mark the chunk done; True when all chunks are, also when called again."""
        kinds = (task_index_key, chunks_key, done_chunks_key, open_key)
        names = [self._run, *(key(self._job) for key in kinds)]
        return bool(self._scripts.run("complete_chunk", names, chunk))

    def is_complete(self) -> bool:
        """Whether every chunk is done."""
        chunks = self._redis.hget(task_index_key(self._job), "chunks")
        return int(self._redis.scard(done_chunks_key(self._job))) == int(chunks or 0)

    def next_chunks(
        self, waiting: int, in_flight: int, *, begun: int | None = None, resend: bool = False
    ) -> list[int]:
        """Chunks to publish now so that `waiting` are in the queue, or more once many have begun.

        At most `in_flight` are begun or waiting. `begun`: this chunk has begun. `resend`: all in flight,
        published or not, and all count as published, because a caller that publishes not all asks again.
        """
        names = [self._run, task_index_key(self._job), open_key(self._job)]
        window = waiting, BEGUN_A_WAITING_CHUNK, in_flight
        arguments = (
            *window,
            PUBLISH_GRACE_SECONDS,
            PUBLISHED if resend else "",
            "" if begun is None else begun,
        )
        return [int(number) for number in self._scripts.run("next_chunks", names, *arguments)]

    def begin_slow_spell(self, seconds: float) -> bool:
        """A service asks for later calls; whether it did not do so within the last `seconds` before this."""
        key, milliseconds = slow_key(self._job), int(seconds * 1000)
        if self._redis.set(key, 1, nx=True, px=milliseconds):
            return True
        self._redis.pexpire(key, milliseconds)
        return False

    def mark_published(self, chunk: int) -> None:
        """The chunk's message is published; it may have begun already."""
        self._redis.zadd(open_key(self._job), {str(chunk): PUBLISHED}, xx=True, gt=True)


def _ticket(stored: str) -> Ticket | None:
    return Ticket(*json.loads(stored)) if stored else None


def _polls(stored: str) -> InferencePolls | None:
    return InferencePolls(*json.loads(stored)) if stored else None


def _failure(task_id: int, error: str) -> str:
    return TaskFailure(task_id=task_id, error=error).model_dump_json()
