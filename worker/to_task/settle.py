"""What follows from a pass: which tasks fail for good, and when the next pass comes."""

from collections.abc import Callable, Sequence

from worker.to_task.attempt import Attempt
from worker.to_task.ledger import Ledger, Mark, OpenTask

MOST_ATTEMPTS = 5
"""Attempts at a task that count; then it has failed."""
SECONDS_BETWEEN_POLLS = 2.0
LONGEST_PAUSE = 16.0


def choose(tasks: Sequence[OpenTask]) -> list[OpenTask]:
    """What the next pass works: tickets first, then what was not tried; what failed before comes last."""
    ticketed = [task for task in tasks if task.ticket is not None]
    fresh = [task for task in tasks if _is_fresh(task)]
    tried = [task for task in tasks if task.ticket is None and task.attempts > 0]
    return ticketed + (fresh or tried)


def settle(attempt: Attempt, chunk: int, ledger: Ledger, probe: Callable[[], object]) -> float | None:
    """Seconds until the next pass over the chunk; None when all of it is done.

    `probe` asks the backend for something simple. When it raises, the backend itself is away, or takes the
    token no more: that is no attempt at anything, and the error is the caller's to wait for or to end with.
    """
    if attempt.held:
        if attempt.denied or not attempt.answered:
            probe()
        _count(list(attempt.held.values()), ledger)
    tasks = ledger.open_tasks(chunk)
    if not tasks:
        return None
    if attempt.answered and not attempt.full and any(_is_fresh(task) for task in tasks):
        return 0.0
    if any(task.ticket is not None for task in tasks):
        return SECONDS_BETWEEN_POLLS
    fewest = min((task.attempts for task in tasks if task.attempts), default=1)
    return min(2.0**fewest, LONGEST_PAUSE)


def _is_fresh(task: OpenTask) -> bool:
    return task.ticket is None and task.attempts == 0


def _count(held: Sequence[Mark], ledger: Ledger) -> None:
    counts = ledger.count_attempts([mark.position for mark in held])
    spent = [mark for mark, count in zip(held, counts, strict=False) if count >= MOST_ATTEMPTS]
    if spent:
        ledger.record(spent)
