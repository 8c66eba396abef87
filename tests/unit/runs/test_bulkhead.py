"""Half of the threads for a dependency, one for steps without a slot, and the last one for stops."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from celery.concurrency.solo import TaskPool as SoloPool
from celery.concurrency.thread import TaskPool as ThreadPool

from tests.harness.pool_threads import NewThread
from worker.pool import MIN_THREADS, MinThreadsStep, SlotFile, pool
from worker.runs import bulkhead as bulkhead_module
from worker.runs.bulkhead import (
    ALL_DEPENDENCIES,
    MAX_RETRY_SECONDS,
    MAX_WAIT_SECONDS,
    MIN_RETRY_SECONDS,
    SECONDS_BETWEEN_TRIES,
    WAIT_INTERVAL_SECONDS,
    Bulkhead,
    all_but_three,
    backoff,
    chunk_share,
    half,
)
from worker.runs.model import Outcome, Reschedule, Suspend
from worker.sandbox import wait_for

DEADLINE_SECONDS = 60
"""The bound on a hang, not on a slow machine."""


class Clock:
    """The bulkhead's clock, which stands still: a thread waits for a slot until there is one."""

    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(bulkhead_module, "time", made)
    return made


@pytest.fixture
def waits(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[[Bulkhead], list[float]]:
    """Let the time of a bulkhead's waits pass at once; how long each of them was."""

    def record(bulkhead: Bulkhead) -> list[float]:
        found: list[float] = []

        def wait(seconds: float) -> None:
            found.append(seconds)
            clock.now += seconds

        monkeypatch.setattr(bulkhead._released, "wait", wait)
        return found

    return record


def test_a_dependency_gets_half_of_the_threads(new_thread: NewThread) -> None:
    bulkhead = Bulkhead(lambda: 6)

    acquired = [new_thread(bulkhead).acquire("cluster") for _ in range(4)]

    assert acquired == [True, True, True, False]
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
        new_thread(bulkhead).acquire(dependency, all_but_three if dependency == "annotate" else half)
        for dependency in dependencies[:threads]
    ]

    # Then some get one, and two at least are left: for steps without a slot, and for stops
    assert 1 <= sum(acquired) <= threads - 2
    if len(set(dependencies)) > 1:
        assert sum(acquired) == threads - 2, "no more threads are left than that"


def test_annotation_leaves_a_slot_to_others(new_thread: NewThread) -> None:
    for threads in (4, 5, 8):
        bulkhead = Bulkhead(lambda: threads)  # noqa: B023 - called in this turn
        acquired = [new_thread(bulkhead).acquire("annotate", all_but_three) for _ in range(threads)]

        assert sum(acquired) == threads - 3
        assert new_thread(bulkhead).acquire("cluster")
        assert not new_thread(bulkhead).acquire("backend")


def test_chunks_leave_a_slot_of_their_release_to_other_steps(new_thread: NewThread) -> None:
    for threads, chunks in ((6, 2), (8, 3), (16, 7)):
        bulkhead = Bulkhead(lambda: threads)  # noqa: B023 - called in this turn
        # Given another step of the release, and after it as many chunks as there are slots for
        short = new_thread(bulkhead)
        assert short.acquire("release")
        acquired = [new_thread(bulkhead).acquire("release", chunk_share) for _ in range(threads // 2)]
        assert sum(acquired) == chunks
        short.release_all()

        # Then no further chunk gets the slot of the other step, and a step does
        assert not new_thread(bulkhead).acquire("release", chunk_share)
        assert new_thread(bulkhead).acquire("release")


def test_a_pool_of_chunks_alone_keeps_no_slot_for_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "consumes", lambda queue: queue == "annotate")

    assert [chunk_share(threads) for threads in (4, 6, 8)] == [half(threads) for threads in (4, 6, 8)]


def test_chunks_are_fetched_until_one_release_has_its_share(new_thread: NewThread) -> None:
    bulkhead = Bulkhead(lambda: 8)
    # Given three slots for the chunks of a release: messages that have not begun may all be of one
    assert [bulkhead.may_have_chunk_slot(held) for held in (0, 2, 3)] == [True, True, False]

    # When it is known of two of them that they are of two releases
    for release in ("release:cat@1.0", "release:dog@1.0"):
        assert new_thread(bulkhead).acquire(release, chunk_share)

    # Then another one may be taken
    assert [bulkhead.may_have_chunk_slot(held) for held in (3, 4)] == [True, False]


def test_a_thread_with_two_slots_counts_once(new_thread: NewThread) -> None:
    # Given threads that each hold a slot of annotation and one of a release
    bulkhead = Bulkhead(lambda: 5)
    both = new_thread(bulkhead)
    assert both.acquire("annotate", all_but_three)
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
    assert not new_thread(bulkhead).acquire("release:cat@1.0"), "that is the last slot"


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


def test_a_step_waits_for_a_slot_that_is_given_back(new_thread: NewThread) -> None:
    # Given a release of which all slots are taken
    bulkhead = Bulkhead(lambda: 6)
    working = [new_thread(bulkhead) for _ in range(2)]
    assert all(thread.acquire("release", chunk_share) for thread in working)
    with ThreadPoolExecutor() as threads:
        # When a slot is given back while another step waits
        waiting = threads.submit(new_thread(bulkhead).acquire, "release", chunk_share, waits=True)
        wait_for(lambda: is_waiting(bulkhead, 3), DEADLINE_SECONDS, "a thread that waits")
        assert not waiting.done()
        working[0].release_all()

        # Then that has it
        assert waiting.result(DEADLINE_SECONDS)


def test_no_step_waits_for_a_dependency_that_is_stuck(
    new_thread: NewThread, waits: Callable[[Bulkhead], list[float]]
) -> None:
    # Given a dependency whose slots were all taken for as long as a step waits
    bulkhead = Bulkhead(lambda: 6)
    hanging = [new_thread(bulkhead) for _ in range(2)]
    assert all(thread.acquire("release", chunk_share) for thread in hanging)
    waited = waits(bulkhead)
    assert not new_thread(bulkhead).acquire("release", chunk_share, waits=True)
    assert sum(waited) == pytest.approx(MAX_WAIT_SECONDS, abs=1.01 * WAIT_INTERVAL_SECONDS)

    # Then none waits after it
    waited.clear()
    assert not any(new_thread(bulkhead).acquire("release", chunk_share, waits=True) for _ in range(20))
    assert waited == []

    # And each that is given back ends that
    hanging[0].release_all()
    assert new_thread(bulkhead).acquire("release", chunk_share, waits=True)


def is_waiting(bulkhead: Bulkhead, threads: int) -> bool:
    """Whether so many threads hold a slot, or wait for one."""
    return sum(name == ALL_DEPENDENCIES for name, _ in list(bulkhead._entered)) == threads


def test_processes_of_a_pool_share_the_slots() -> None:
    # Given a pool of five processes, forked from one parent
    file = SlotFile()
    bulkhead = Bulkhead(lambda: 5, lambda: file)
    children = [
        ForkedProcess(bulkhead, name) for name in ("cluster", "cluster", "cluster", "backend", "other")
    ]

    try:
        # Then a dependency has half of them, and all together leave two
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


@pytest.mark.parametrize(("asked", "size"), [(1, 4), (2, 4), (4, 4), (8, 8)])
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
    def countdowns(tries: int) -> list[float]:
        return [Bulkhead(lambda: 4).retry_countdown("cluster", tries) for _ in range(100)]

    firsts, seconds, lasts = countdowns(0), countdowns(1), countdowns(10_000)
    assert all(MIN_RETRY_SECONDS / 2 <= first <= MIN_RETRY_SECONDS for first in firsts)
    assert all(MIN_RETRY_SECONDS <= second <= 2 * MIN_RETRY_SECONDS for second in seconds)
    assert all(MAX_RETRY_SECONDS / 2 <= last <= MAX_RETRY_SECONDS for last in lasts)


def test_many_retries_for_a_slot_are_spread() -> None:
    bulkhead = Bulkhead(lambda: 4)
    countdowns = [bulkhead.retry_countdown("cluster", 0) for _ in range(1_000)]
    assert max(countdowns) == pytest.approx(1_000 * SECONDS_BETWEEN_TRIES)
    assert bulkhead.retry_countdown("backend", 0) <= MIN_RETRY_SECONDS, (
        "those of another dependency are not in the way"
    )


def test_a_backoff_is_shortened_by_chance_by_a_quarter_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.runs.bulkhead.MIN_JITTER", 0.75)

    waits = {backoff(5, 8.0) for _ in range(200)}

    assert len(waits) > 100
    assert min(waits) >= 6.0
    assert max(waits) <= 8.0


def test_steps_leave_a_thread_to_control_work(
    new_thread: NewThread, waits: Callable[[Bulkhead], list[float]]
) -> None:
    # Given a pool of four threads, in three of which steps hang, two of them with a slot
    bulkhead = Bulkhead(lambda: 4)
    hanging = [new_thread(bulkhead) for _ in range(3)]
    assert all(thread.begin_step() for thread in hanging)
    assert [thread.acquire(name) for thread, name in zip(hanging, "abc", strict=True)] == [True, True, False]

    # Then no other begins, neither in the last thread nor after it has waited once
    waited = waits(bulkhead)
    assert not new_thread(bulkhead).begin_step()
    assert sum(waited) == pytest.approx(MAX_WAIT_SECONDS, abs=1.01 * WAIT_INTERVAL_SECONDS)
    waited.clear()
    assert not any(new_thread(bulkhead).begin_step() for _ in range(20))
    assert waited == [], "nobody waits while steps are stuck"

    # And one does when another has ended
    hanging[0].release_all()
    assert new_thread(bulkhead).begin_step()


def test_a_step_waits_for_another_that_ends(new_thread: NewThread) -> None:
    bulkhead = Bulkhead(lambda: 2)
    first, second = new_thread(bulkhead), new_thread(bulkhead)
    assert first.begin_step()
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(second.begin_step)
        first.release_all()
        assert waiting.result(DEADLINE_SECONDS)


def test_what_is_known_of_dependencies_is_bounded() -> None:
    bulkhead = Bulkhead(lambda: 4)

    for number in range(1_500):
        bulkhead.retry_countdown(f"release:{number}", 0)

    assert len(bulkhead._last_try) == 1_000
