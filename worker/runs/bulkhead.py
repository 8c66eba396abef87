"""How many threads one dependency may hold, and how long to wait before the next attempt.

A thread is one of a pool of threads, or a process of a prefork pool.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from worker.per_process import RecentlyUsed
from worker.pool import SlotFile, pool
from worker.runs.model import Outcome, Reschedule

MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.1, 6.0
"""Most calls are short, so the first retry for a slot comes soon; some hang, so the later ones come later."""

MAX_WAIT_SECONDS = 0.5
"""For so long a step waits in its thread until another one ends, which most do within milliseconds."""
WAIT_INTERVAL_SECONDS = 0.02
"""Between two looks for a slot that another process gives back."""

SECONDS_BETWEEN_TRIES = 0.05
"""Interval between all retries for one dependency, so that waiting messages keep no process busy."""

MAX_EXPONENT = 50
"""Beyond it every backoff has long reached its ceiling, and a float would overflow."""


MIN_JITTER = 0.75


def exponential(attempt: int, ceiling: float, *, first: float = 0.5, factor: float = 2.0) -> float:
    """`first`, growing by `factor` with each attempt, at most `ceiling`; in seconds."""
    return min(first * factor ** min(attempt, MAX_EXPONENT), ceiling)


def backoff(attempt: int, ceiling: float, *, first: float = 0.5, factor: float = 2.0) -> float:
    """Seconds before the next attempt: `exponential`, less up to a quarter at random.

    A dependency that is back would otherwise be asked at the same moment by all that had failed together.
    """
    return random.uniform(MIN_JITTER, 1.0) * exponential(attempt, ceiling, first=first, factor=factor)


ALL_DEPENDENCIES, ALL_STEPS = "all", "steps"

QUEUES_OF_OTHER_CALLS = ("to_task", "deploy")
"""The queues of the steps that call code of a release and are no chunks."""


RELEASE = "release:"


def release_share(plugin: str) -> str:
    """The share of the calls of one release's code, `code@version`."""
    return f"{RELEASE}{plugin}"


def half(threads: int) -> int:
    """The slots of most dependencies, never all that there are."""
    return min(max(1, threads // 2), all_but_three(threads))


def chunk_share(threads: int) -> int:
    """The slots of the chunks of one release: one less than its share where other steps call its code, too.

    The chunks of a large run come one after the other, and would leave no slot to the steps of small runs.
    """
    share = half(threads)
    has_others = any(pool.consumes(queue) for queue in QUEUES_OF_OTHER_CALLS)
    return max(1, share - 1) if has_others else share


def all_but_three(threads: int) -> int:
    """The slots of a dependency with much work.

    One thread stays for stops, one for steps without a slot, and one for the others that need a slot, which
    would hardly ever find one beside it.
    """
    return max(1, threads - 3)


class Bulkhead:
    """Lets at most half of the threads work with one dependency at a time.

    All slots together leave two threads: one to steps that need none, and all steps together leave the last
    one, to stops and entry tasks. A thread that holds several slots counts once.
    """

    def __init__(
        self, threads: Callable[[], int], shared: Callable[[], SlotFile | None] = lambda: None
    ) -> None:
        self._threads = threads
        self._shared = shared
        self._lock = threading.Lock()
        self._released = threading.Condition(self._lock)
        self._stuck: set[str] = set()
        """For these a thread has waited in vain, and none of this process has given a slot back since."""
        self._taken: dict[str, set[int]] = {}
        self._entered: Counter[tuple[str, int]] = Counter()
        self._total_slots: dict[tuple[str, int], int] = {}
        self._last_try: RecentlyUsed[str, float] = RecentlyUsed()

    @contextmanager
    def acquire(
        self, dependency: str, most: Callable[[int], int] = half, *, waits: bool = False
    ) -> Iterator[bool]:
        """Whether there is a slot, released after the block.

        `most`: by the number of threads; half of them if it is not given. With `waits` the thread waits a
        moment for a slot, but not while the dependency is stuck.
        """
        threads = self._threads()
        slot = self._acquire(dependency, most(threads), max(1, threads - 2), waits)
        try:
            yield slot is not None
        finally:
            if slot is not None:
                self._release(dependency, slot)

    @contextmanager
    def step(self) -> Iterator[bool]:
        """Whether a step, or another task that calls a service, may begin in this thread.

        A service that hangs holds the threads of all that call it until their timeouts. So one is kept free;
        a step that finds no other waits a moment for one, but not while steps are stuck.
        """
        acquired = self._enter_step()
        try:
            yield acquired
        finally:
            if acquired:
                with self._lock:
                    self._leave(ALL_STEPS)
                    self._have_released(ALL_STEPS)

    def _enter_step(self) -> bool:
        threads = self._threads()
        # A pool that cannot keep a thread free, or no pool at all, needs no limit.
        limit = threads - 1 if threads > 1 else SlotFile.MAX_SLOTS
        with self._lock:
            return self._wait_until(lambda: self._enter(ALL_STEPS, limit), ALL_STEPS)

    def run(
        self, dependency: str, tries: int, function: Callable[[], Outcome], most: Callable[[int], int] = half
    ) -> Outcome:
        """The outcome of a step's function, called in a slot.

        The step waits a moment for a slot, and is rescheduled when there is none: one that was only
        rescheduled would find it taken again by a message that came meanwhile.
        """
        with self.acquire(dependency, most, waits=True) as acquired:
            if acquired:
                return function()
        return Reschedule(self.retry_countdown(dependency, tries), keeps_retries=True)

    def may_have_chunk_slot(self, held: int) -> bool:
        """Whether another chunk finds a slot of its release; `held`: messages of chunks that this worker has.

        Which releases those are of that have not begun is not known; they may all be of one.
        """
        with self._lock:
            counts = [len(taken) for name, taken in self._taken.items() if name.startswith(RELEASE)]
        return max(counts, default=0) + max(0, held - sum(counts)) < chunk_share(self._threads())

    def _acquire(self, dependency: str, limit: int, limit_of_all: int, waits: bool) -> int | None:
        taken: list[int] = []

        def take() -> bool:
            slot = self._take(dependency, limit)
            taken.extend([] if slot is None else [slot])
            return bool(taken)

        with self._lock:
            # A thread that waits for a slot counts as one that holds one.
            if not self._enter(ALL_DEPENDENCIES, limit_of_all):
                return None
            if self._wait_until(take, dependency) if waits else take():
                return taken[0]
            self._leave(ALL_DEPENDENCIES)
            return None

    def _wait_until(self, is_done: Callable[[], bool], dependency: str) -> bool:
        deadline = time.monotonic() + MAX_WAIT_SECONDS
        while not is_done():
            if dependency in self._stuck or time.monotonic() >= deadline:
                self._stuck.add(dependency)
                return False
            self._released.wait(WAIT_INTERVAL_SECONDS)
        return True

    def _have_released(self, dependency: str) -> None:
        self._stuck.discard(dependency)
        self._released.notify_all()

    def _release(self, dependency: str, slot: int) -> None:
        with self._lock:
            self._give_back(dependency, slot)
            self._leave(ALL_DEPENDENCIES)
            self._have_released(dependency)

    def _enter(self, total: str, limit: int) -> bool:
        """Count this thread among those of `total`, if it is not one of them yet."""
        entry = total, threading.get_ident()
        if not self._entered[entry]:
            slot = self._take(total, limit)
            if slot is None:
                return False
            self._total_slots[entry] = slot
        self._entered[entry] += 1
        return True

    def _leave(self, total: str) -> None:
        entry = total, threading.get_ident()
        self._entered[entry] -= 1
        if not self._entered[entry]:
            del self._entered[entry]
            self._give_back(total, self._total_slots.pop(entry))

    def _take(self, name: str, limit: int) -> int | None:
        shared, taken = self._shared(), self._taken.setdefault(name, set())
        # From the last one, which chunks may not have, so that the others are left to them.
        for slot in reversed(range(limit)):
            # A process's own locks do not keep it from taking them again, so both are asked.
            if slot not in taken and (shared is None or shared.acquire(name, slot)):
                taken.add(slot)
                return slot
        return None

    def _give_back(self, name: str, slot: int) -> None:
        taken = self._taken[name]
        taken.discard(slot)
        if not taken:
            del self._taken[name]
        if (shared := self._shared()) is not None:
            shared.release(name, slot)

    def retry_countdown(self, dependency: str, tries: int) -> float:
        """Seconds until a message that found no slot is retried; at random, so that not all come at once."""
        with self._lock:
            now = time.monotonic()
            last = max(self._last_try.get(dependency) or now, now) + SECONDS_BETWEEN_TRIES
            self._last_try[dependency] = last
            first_free = last - now
        return max(
            first_free,
            random.uniform(0.5, 1.0) * exponential(tries, MAX_RETRY_SECONDS, first=MIN_RETRY_SECONDS),
        )


bulkhead = Bulkhead(pool.threads, lambda: pool.slot_file)
"""The bulkhead of this worker."""
