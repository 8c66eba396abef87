"""What is done of a run, as the annotation sees it. A run's is in Redis, a direct call's in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.statuses import TaskFailure

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
