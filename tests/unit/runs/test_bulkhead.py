"""Half of the threads for a dependency, and no more."""

from contextlib import ExitStack

import pytest

from worker.runs.bulkhead import (
    MAX_RETRY_SECONDS,
    MIN_RETRY_SECONDS,
    SECONDS_BETWEEN_TRIES,
    Bulkhead,
    backoff,
)


def test_a_dependency_gets_half_of_the_threads() -> None:
    bulkhead = Bulkhead(lambda: 4)
    with (
        bulkhead.acquire("cluster") as first,
        bulkhead.acquire("cluster") as second,
        bulkhead.acquire("cluster") as third,
    ):
        assert (first, second, third) == (True, True, False)
        with bulkhead.acquire("backend") as other:
            assert other, "each dependency has bulkhead of its own"


def test_a_slot_is_free_after_its_block_and_after_an_error() -> None:
    bulkhead = Bulkhead(lambda: 2)
    try:
        with bulkhead.acquire("cluster") as mine:
            assert mine
            raise RuntimeError
    except RuntimeError:
        pass
    with bulkhead.acquire("cluster") as mine:
        assert mine
        with bulkhead.acquire("cluster") as second:
            assert not second
    with bulkhead.acquire("cluster") as mine:
        assert mine, "who got no turn gave none back"


def test_a_single_thread_always_has_a_slot() -> None:
    for threads in (1, 0):
        with Bulkhead(lambda: threads).acquire("cluster") as mine:  # noqa: B023 - called at once
            assert mine


def test_retries_for_a_slot_come_soon_and_later_each_time() -> None:
    def waits(tries: int) -> list[float]:
        return [Bulkhead(lambda: 4).retry_countdown("cluster", tries) for _ in range(100)]

    firsts, seconds, lasts = waits(0), waits(1), waits(10_000)
    assert all(MIN_RETRY_SECONDS / 2 <= first <= MIN_RETRY_SECONDS for first in firsts)
    assert all(MIN_RETRY_SECONDS <= second <= 2 * MIN_RETRY_SECONDS for second in seconds)
    assert all(MAX_RETRY_SECONDS / 2 <= last <= MAX_RETRY_SECONDS for last in lasts)


def test_many_retries_for_a_slot_are_spread() -> None:
    bulkhead = Bulkhead(lambda: 4)
    waits = [bulkhead.retry_countdown("cluster", 0) for _ in range(1_000)]
    assert 0.9 * 1_000 * SECONDS_BETWEEN_TRIES < max(waits) <= 1_000 * SECONDS_BETWEEN_TRIES
    assert bulkhead.retry_countdown("backend", 0) <= MIN_RETRY_SECONDS, (
        "those of another dependency are not in the way"
    )


def test_all_slots_together_leave_a_thread_to_short_tasks() -> None:
    bulkhead = Bulkhead(lambda: 4)
    with ExitStack() as stack:
        taken = [stack.enter_context(bulkhead.acquire("annotate", all_but_one=True)) for _ in range(5)]
        assert taken == [True, True, True, False, False]
        # But nobody is shut out altogether.
        assert stack.enter_context(bulkhead.acquire("cluster"))
        assert not stack.enter_context(bulkhead.acquire("cluster"))


def test_a_backoff_is_shortened_by_chance_by_a_quarter_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.runs.bulkhead.MIN_JITTER", 0.75)

    waits = {backoff(5, 8.0) for _ in range(200)}

    assert len(waits) > 100
    assert min(waits) >= 6.0
    assert max(waits) <= 8.0
