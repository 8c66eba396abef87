"""The ledger of a direct call: the process is the run."""

import threading
from collections.abc import Sequence

from shared.statuses import TaskFailure
from worker.to_task.ledger import MOST_FAILURES, Counts, Mark, OpenTask, Ticket


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
