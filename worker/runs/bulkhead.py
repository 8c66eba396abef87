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


ALL_DEPENDENCIES = "all"


def release_share(plugin: str) -> str:
    """The share of the calls of one release's code, `code@version`."""
    return f"release:{plugin}"


def half(threads: int) -> int:
    """The slots of most dependencies."""
    return max(1, threads // 2)


def all_but_two(threads: int) -> int:
    """The slots of a dependency with much work.

    One thread stays for control work, and one for the others that need a slot, which would hardly ever find
    one beside it.
    """
    return max(1, threads - 2)


class Bulkhead:
    """Lets at most half of the threads work with one dependency at a time; no thread waits for a slot.

    All slots together never take the last thread, which is left to short tasks: stops, reports, entry tasks.
    A thread that holds several slots counts once.
    """

    def __init__(
        self, threads: Callable[[], int], shared: Callable[[], SlotFile | None] = lambda: None
    ) -> None:
        self._threads = threads
        self._shared = shared
        self._lock = threading.Lock()
        self._taken: dict[str, set[int]] = {}
        self._slots_of_thread: Counter[int] = Counter()
        self._total_slots: dict[int, int] = {}
        self._last_try: dict[str, float] = {}

    @contextmanager
    def acquire(self, dependency: str, most: Callable[[int], int] = half) -> Iterator[bool]:
        """Whether there is a slot, released after the block.

        `most`: by the number of threads; half of them if it is not given.
        """
        threads = self._threads()
        slot = self._acquire(dependency, most(threads), max(1, threads - 1))
        try:
            yield slot is not None
        finally:
            if slot is not None:
                self._release(dependency, slot)

    def run(self, dependency: str, tries: int, function: Callable[[], Outcome]) -> Outcome:
        """The outcome of a step's function, called in a slot; the step is rescheduled when there is none."""
        with self.acquire(dependency) as acquired:
            if acquired:
                return function()
        return Reschedule(self.retry_countdown(dependency, tries))

    def _acquire(self, dependency: str, limit: int, limit_of_all: int) -> int | None:
        thread = threading.get_ident()
        with self._lock:
            slot = self._take(dependency, limit)
            if slot is None:
                return None
            if not self._slots_of_thread[thread]:
                total = self._take(ALL_DEPENDENCIES, limit_of_all)
                if total is None:
                    self._give_back(dependency, slot)
                    return None
                self._total_slots[thread] = total
            self._slots_of_thread[thread] += 1
            return slot

    def _release(self, dependency: str, slot: int) -> None:
        thread = threading.get_ident()
        with self._lock:
            self._give_back(dependency, slot)
            self._slots_of_thread[thread] -= 1
            if not self._slots_of_thread[thread]:
                del self._slots_of_thread[thread]
                self._give_back(ALL_DEPENDENCIES, self._total_slots.pop(thread))

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
