"""The ledger of a direct call, in this process's memory."""

import threading
import time
from collections.abc import Sequence

from shared.statuses import TaskFailure
from worker.to_task.ledger import (
    MAX_FAILURE_RECORDS,
    Counts,
    InferencePolls,
    OpenTask,
    TaskOutcome,
    Ticket,
)


class MemoryLedger:
    """The ledger of a direct call: these tasks, in chunks of `size`."""

    def __init__(self, task_ids: Sequence[int], size: int) -> None:
        self._ids = list(task_ids)
        self._size = size
        self._done: set[int] = set()
        self._failed = 0
        self._failures: list[TaskFailure] = []
        self._attempts: dict[int, int] = {}
        self._tickets: dict[int, Ticket] = {}
        self._polls: dict[int, InferencePolls] = {}
        self._single: set[int] = set()
        self._failures_in_row: dict[str, int] = {}
        self._lock = threading.Lock()

    @property
    def chunks(self) -> range:
        """The numbers of the chunks."""
        return range(-(-len(self._ids) // self._size))

    def has_ended(self) -> bool:
        """Never: nobody stops a direct call."""
        return False

    def open_tasks(self, chunk: int) -> list[OpenTask]:
        """See `Ledger`."""
        with self._lock:
            first = chunk * self._size
            return [
                OpenTask(
                    position,
                    task_id,
                    self._attempts.get(position, 0),
                    self._tickets.get(position),
                    self._polls.get(position),
                )
                for position, task_id in enumerate(self._ids[first : first + self._size], start=first)
                if position not in self._done
            ]

    def record(self, outcomes: Sequence[TaskOutcome]) -> bool:
        """See `Ledger`."""
        with self._lock:
            for mark in outcomes:
                if mark.position in self._done:
                    continue
                self._done.add(mark.position)
                self._tickets.pop(mark.position, None)
                if mark.error is not None:
                    self._failed += 1
                    self._failures.append(TaskFailure(task_id=mark.task_id, error=mark.error))
            del self._failures[MAX_FAILURE_RECORDS:]
        return True

    def set_ticket(self, position: int, ticket: Ticket | None) -> None:
        """See `Ledger`."""
        with self._lock:
            self._tickets.pop(position, None)
            if ticket is not None:
                self._tickets[position] = ticket

    def set_polls(self, position: int, polls: InferencePolls | None) -> None:
        """See `Ledger`."""
        with self._lock:
            self._polls.pop(position, None)
            if polls is not None:
                self._polls[position] = polls

    def now(self) -> float:
        """See `Ledger`."""
        return time.time()

    def increment_attempts(self, positions: Sequence[int]) -> list[int]:
        """See `Ledger`."""
        with self._lock:
            for position in positions:
                self._attempts[position] = self._attempts.get(position, 0) + 1
            return [self._attempts[position] for position in positions]

    def has_single_calls(self, chunk: int) -> bool:
        """See `Ledger`."""
        return chunk in self._single

    def begin_single_calls(self, chunk: int) -> None:
        """See `Ledger`."""
        self._single.add(chunk)

    def count_plugin_failure(self, operation: str) -> int:
        """See `Ledger`."""
        with self._lock:
            self._failures_in_row[operation] = self._failures_in_row.get(operation, 0) + 1
            return self._failures_in_row[operation]

    def reset_plugin_failures(self, operation: str) -> None:
        """See `Ledger`."""
        with self._lock:
            self._failures_in_row.pop(operation, None)

    def counts(self) -> Counts:
        """See `Ledger`."""
        with self._lock:
            return Counts(len(self._done) - self._failed, self._failed, len(self._ids))

    def failures(self) -> list[TaskFailure]:
        """See `Ledger`."""
        with self._lock:
            return list(self._failures)
