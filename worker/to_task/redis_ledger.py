"""The ledger in Redis: one bit a task, one member a chunk, and the window of chunks that are handed out."""

import json
from collections.abc import Sequence

from redis import Redis

from shared.channels import job_key
from shared.statuses import TaskFailure
from worker.lua import Scripts
from worker.runs.keys import run_key
from worker.runs.model import Lease
from worker.runs.store import RunStore
from worker.to_task import keys
from worker.to_task.ledger import MOST_FAILURES, Counts, Mark, OpenTask, Ticket

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
        return self._store.is_over(self._job)

    def open_tasks(self, chunk: int) -> list[OpenTask]:
        """See `Ledger`."""
        hashes = (keys.catalogue_key, keys.chunks_key, keys.done_key, keys.attempts_key, keys.tickets_key)
        flat = self._scripts.run("open_tasks", [key(self._job) for key in hashes], chunk)
        rows = zip(*[iter(flat)] * 4, strict=True)
        return [
            OpenTask(int(position), int(task_id), int(attempts), _ticket(ticket))
            for position, task_id, attempts, ticket in rows
        ]

    def record(self, marks: Sequence[Mark]) -> bool:
        """See `Ledger`."""
        kinds = (keys.done_key, keys.failures_key, keys.attempts_key, keys.tickets_key)
        names = [self._run, job_key(self._job), *(key(self._job) for key in kinds)]
        arguments: list[str | int] = [MOST_FAILURES]
        for mark in marks:
            failure = "" if mark.error is None else _failure(mark)
            arguments += [mark.position, failure]
        return bool(self._scripts.run("record", names, *arguments))

    def keep_ticket(self, position: int, ticket: Ticket | None) -> None:
        """See `Ledger`."""
        value = "" if ticket is None else json.dumps([ticket.ticket, ticket.model])
        self._scripts.run("note", [self._run, keys.tickets_key(self._job)], position, value)

    def count_attempts(self, positions: Sequence[int]) -> list[int]:
        """See `Ledger`."""
        names = [self._run, keys.attempts_key(self._job)]
        return [int(count) for count in self._scripts.run("count_attempts", names, *positions)]

    def counts(self) -> Counts:
        """See `Ledger`."""
        found = self._redis.hmget(job_key(self._job), ["success", "failed", "total"])
        return Counts(*(int(number or 0) for number in found))

    def failures(self) -> list[TaskFailure]:
        """See `Ledger`."""
        found = self._redis.lrange(keys.failures_key(self._job), 0, -1)
        return [TaskFailure.model_validate_json(each) for each in found]

    def take_untold(self, most: int) -> list[TaskFailure]:
        """Those of the run's first `most` failures that were not taken before."""
        names = [self._run, keys.catalogue_key(self._job), keys.failures_key(self._job)]
        found = self._scripts.run("take_untold", names, most)
        return [TaskFailure.model_validate_json(each) for each in found]

    def chunk_done(self, chunk: int) -> bool:
        """The chunk is done; True when all are, also for whoever asks again."""
        kinds = (keys.catalogue_key, keys.chunks_key, keys.done_chunks_key, keys.open_key)
        names = [self._run, *(key(self._job) for key in kinds)]
        return bool(self._scripts.run("chunk_done", names, chunk))

    def all_done(self) -> bool:
        """Whether every chunk is done."""
        chunks = self._redis.hget(keys.catalogue_key(self._job), "chunks")
        return int(self._redis.scard(keys.done_chunks_key(self._job))) == int(chunks or 0)

    def next_chunks(self, window: int, *, again: bool = False) -> list[int]:
        """Chunks to send now, so that `window` are open; `again`: all that are open, sent or not."""
        names = [self._run, keys.catalogue_key(self._job), keys.open_key(self._job)]
        numbers = self._scripts.run("next_chunks", names, window, SECONDS_TO_SEND, int(again))
        return [int(number) for number in numbers]

    def sent(self, chunk: int) -> None:
        """The chunk's message is out."""
        self._redis.zadd(keys.open_key(self._job), {str(chunk): float("inf")}, xx=True)


def _ticket(stored: str) -> Ticket | None:
    return Ticket(*json.loads(stored)) if stored else None


def _failure(mark: Mark) -> str:
    return TaskFailure(task_id=mark.task_id, error=mark.error or "").model_dump_json()
