"""How many threads one dependency may hold, and how long to wait before the next attempt.

A thread is one of a pool of threads, or a process of a prefork pool.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


def release_share(plugin: str) -> str:
    """The share of the calls of one release's code, `code@version`."""
    return f"release:{plugin}"


def half(threads: int) -> int:
    """The slots of most dependencies, never all that there are."""
    return min(max(1, threads // 2), all_but_three(threads))


def all_but_three(threads: int) -> int:
    """The slots of a dependency with much work.

    One thread stays for stops, one for steps without a slot, and one for the others that need a slot, which
    would hardly ever find one beside it.
    """
    return max(1, threads - 3)


class Bulkhead:
    """Lets at most half of the threads work with one dependency at a time; no thread waits for such a slot.

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
        self._is_stuck = False
        """A step has waited in vain, and none of this process has ended since."""
        self._taken: dict[str, set[int]] = {}
        self._entered: Counter[tuple[str, int]] = Counter()
        self._total_slots: dict[tuple[str, int], int] = {}
        self._last_try: dict[str, float] = {}

    @contextmanager
    def acquire(self, dependency: str, most: Callable[[int], int] = half) -> Iterator[bool]:
        """Whether there is a slot, released after the block.

        `most`: by the number of threads; half of them if it is not given.
        """
        threads = self._threads()
        slot = self._acquire(dependency, most(threads), max(1, threads - 2))
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
                    self._is_stuck = False
                    self._released.notify()

    def _enter_step(self) -> bool:
        deadline = time.monotonic() + MAX_WAIT_SECONDS
        threads = self._threads()
        # A pool that cannot keep a thread free, or no pool at all, needs no limit.
        limit = threads - 1 if threads > 1 else SlotFile.MAX_SLOTS
        with self._lock:
            while not self._enter(ALL_STEPS, limit):
                if self._is_stuck or time.monotonic() >= deadline:
                    self._is_stuck = True
                    return False
                self._released.wait(WAIT_INTERVAL_SECONDS)
        return True

    def run(self, dependency: str, tries: int, function: Callable[[], Outcome]) -> Outcome:
        """The outcome of a step's function, called in a slot; the step is rescheduled when there is none."""
        with self.acquire(dependency) as acquired:
            if acquired:
                return function()
        return Reschedule(self.retry_countdown(dependency, tries))

    def _acquire(self, dependency: str, limit: int, limit_of_all: int) -> int | None:
        with self._lock:
            slot = self._take(dependency, limit)
            if slot is None:
                return None
            if not self._enter(ALL_DEPENDENCIES, limit_of_all):
                self._give_back(dependency, slot)
                return None
            return slot

    def _release(self, dependency: str, slot: int) -> None:
        with self._lock:
            self._give_back(dependency, slot)
            self._leave(ALL_DEPENDENCIES)

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
        for slot in range(limit):
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
            last = max(self._last_try.get(dependency, now), now) + SECONDS_BETWEEN_TRIES
            self._last_try[dependency] = last
            first_free = last - now
        return max(
            first_free,
            random.uniform(0.5, 1.0) * exponential(tries, MAX_RETRY_SECONDS, first=MIN_RETRY_SECONDS),
        )


bulkhead = Bulkhead(pool.threads, lambda: pool.slot_file)
"""The bulkhead of this worker."""
