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


ALL_DEPENDENCIES = "all"


def release_share(plugin: str) -> str:
    """The share of the calls of one release's code, `code@version`."""
    return f"release:{plugin}"


class Bulkhead:
    """Lets at most half of the threads work with one dependency at a time; no thread waits for such a slot.

    All slots and all steps together never take the last thread, which is left to short tasks: stops, entry
    tasks. A thread that holds several slots counts once.
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
        self._slots_of_thread: Counter[int] = Counter()
        self._total_slots: dict[int, int] = {}
        self._last_try: dict[str, float] = {}

    @contextmanager
    def acquire(self, dependency: str, *, all_but_two: bool = False) -> Iterator[bool]:
        """Whether there is a slot, released after the block.

        `all_but_two`: of all threads but two in place of half of them. One stays for control work, and one
        for the others that need a slot, which would hardly ever find one beside a dependency with much work.
        """
        threads = self._threads()
        limit = threads - 2 if all_but_two else threads // 2
        slot = self._acquire(dependency, max(1, limit), max(1, threads - 1))
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
                    self._leave(threading.get_ident())

    def _enter_step(self) -> bool:
        thread, deadline = threading.get_ident(), time.monotonic() + MAX_WAIT_SECONDS
        limit = max(1, self._threads() - 1)
        with self._lock:
            while not self._enter(thread, limit):
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
        thread = threading.get_ident()
        with self._lock:
            slot = self._take(dependency, limit)
            if slot is None:
                return None
            if not self._enter(thread, limit_of_all):
                self._give_back(dependency, slot)
                return None
            return slot

    def _release(self, dependency: str, slot: int) -> None:
        with self._lock:
            self._give_back(dependency, slot)
            self._leave(threading.get_ident())

    def _enter(self, thread: int, limit: int) -> bool:
        """Count the thread among those that hold slots, if it is not one of them yet."""
        if not self._slots_of_thread[thread]:
            slot = self._take(ALL_DEPENDENCIES, limit)
            if slot is None:
                return False
            self._total_slots[thread] = slot
        self._slots_of_thread[thread] += 1
        return True

    def _leave(self, thread: int) -> None:
        self._slots_of_thread[thread] -= 1
        if not self._slots_of_thread[thread]:
            del self._slots_of_thread[thread]
            self._give_back(ALL_DEPENDENCIES, self._total_slots.pop(thread))
            self._is_stuck = False
            self._released.notify()

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
