"""Half of the threads for a dependency, and the last one for nobody."""

import os
import signal
from types import SimpleNamespace

import pytest
from celery.concurrency.solo import TaskPool as SoloPool
from celery.concurrency.thread import TaskPool as ThreadPool

from tests.harness.pool_threads import NewThread
from worker.pool import MIN_THREADS, MinThreadsStep, SlotFile
from worker.runs.bulkhead import (
    MAX_RETRY_SECONDS,
    MIN_RETRY_SECONDS,
    SECONDS_BETWEEN_TRIES,
    Bulkhead,
    all_but_two,
    backoff,
    half,
)
from worker.runs.model import Outcome, Reschedule, Suspend


def test_a_dependency_gets_half_of_the_threads(new_thread: NewThread) -> None:
    bulkhead = Bulkhead(lambda: 4)

    acquired = [new_thread(bulkhead).acquire("cluster") for _ in range(3)]

    assert acquired == [True, True, False]
    assert new_thread(bulkhead).acquire("backend"), "each dependency has slots of its own"


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "dependencies",
    [["one", "two", "three", "four", "five", "six", "seven", "eight"], ["cluster"] * 8, ["annotate"] * 8],
    ids=["many dependencies", "one dependency", "annotation"],
)
def test_control_work_always_has_a_thread(new_thread: NewThread, size: int, dependencies: list[str]) -> None:
    # Given a pool, which the worker makes no smaller than MIN_THREADS
    threads = max(size, MIN_THREADS)
    bulkhead = Bulkhead(lambda: threads)

    # When all of its threads ask for slots
    acquired = [
        new_thread(bulkhead).acquire(dependency, all_but_two if dependency == "annotate" else half)
        for dependency in dependencies[:threads]
    ]

    # Then some get one, and one at least is left
    assert 1 <= sum(acquired) <= threads - 1
    if len(set(dependencies)) > 1:
        assert sum(acquired) == threads - 1, "no more threads are left than that"


def test_annotation_leaves_a_slot_to_others(new_thread: NewThread) -> None:
    for threads in (3, 4, 8):
        bulkhead = Bulkhead(lambda: threads)  # noqa: B023 - called in this turn
        acquired = [new_thread(bulkhead).acquire("annotate", all_but_two) for _ in range(threads)]

        assert sum(acquired) == threads - 2
        assert new_thread(bulkhead).acquire("cluster")
        assert not new_thread(bulkhead).acquire("backend")


def test_a_thread_with_two_slots_counts_once(new_thread: NewThread) -> None:
    # Given threads that each hold a slot of annotation and one of a release
    bulkhead = Bulkhead(lambda: 4)
    both = new_thread(bulkhead)
    assert both.acquire("annotate", all_but_two)
    assert both.acquire("release:cat@1.0")

    # Then two more threads get one
    assert [new_thread(bulkhead).acquire(name) for name in ("cluster", "release:dog@1.0", "backend")] == [
        True,
        True,
        False,
    ]

    # And all that it held is free after it
    both.release_all()
    assert new_thread(bulkhead).acquire("backend")
    assert not new_thread(bulkhead).acquire("release:cat@1.0"), "that is the last thread"


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


def test_a_step_without_a_slot_is_rescheduled(new_thread: NewThread) -> None:
    bulkhead = Bulkhead(lambda: 2)
    calls: list[str] = []

    def step() -> Outcome:
        calls.append("called")
        return Suspend()

    assert bulkhead.run("cluster", 0, step) == Suspend()
    new_thread(bulkhead).acquire("cluster")
    assert isinstance(bulkhead.run("cluster", 0, step), Reschedule)
    assert calls == ["called"]


def test_processes_of_a_pool_share_the_slots() -> None:
    # Given a pool of four processes, forked from one parent
    file = SlotFile()
    bulkhead = Bulkhead(lambda: 4, lambda: file)
    children = [
        ForkedProcess(bulkhead, name) for name in ("cluster", "cluster", "cluster", "backend", "other")
    ]

    try:
        # Then a dependency has half of them, and all together leave one
        assert [child.acquired for child in children] == [True, True, False, True, False]

        # When one is killed, then its slots are free
        children[0].kill()
        with bulkhead.acquire("cluster") as mine:
            assert mine
    finally:
        for child in children:
            child.kill()


class ForkedProcess:
    """A process of a prefork pool, which asks for one slot and keeps it."""

    def __init__(self, bulkhead: Bulkhead, dependency: str) -> None:
        answer, theirs = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                with bulkhead.acquire(dependency) as acquired:
                    os.write(theirs, b"1" if acquired else b"0")
                    signal.pause()
            finally:
                os._exit(0)
        os.close(theirs)
        self.acquired = os.read(answer, 1) == b"1"
        os.close(answer)

    def kill(self) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0


@pytest.mark.parametrize(("asked", "size"), [(1, 3), (2, 3), (3, 3), (8, 8)])
def test_a_pool_has_threads_enough_for_control_work(asked: int, size: int) -> None:
    parent = SimpleNamespace(
        pool_cls=ThreadPool, concurrency=asked, min_concurrency=asked, max_concurrency=None
    )

    MinThreadsStep(parent)

    assert (parent.concurrency, parent.min_concurrency, parent.max_concurrency) == (size, size, None)


def test_a_pool_of_one_thread_only_is_left_alone() -> None:
    parent = SimpleNamespace(pool_cls=SoloPool, concurrency=1, min_concurrency=1, max_concurrency=None)

    MinThreadsStep(parent)

    assert parent.concurrency == 1


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


def test_a_backoff_is_shortened_by_chance_by_a_quarter_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.runs.bulkhead.MIN_JITTER", 0.75)

    waits = {backoff(5, 8.0) for _ in range(200)}

    assert len(waits) > 100
    assert min(waits) >= 6.0
    assert max(waits) <= 8.0
