"""How many threads one dependency may hold, and how long to wait before the next attempt."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery import signals

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


class Bulkhead:
    """Lets at most half of the threads work with one dependency at a time; no thread waits for a slot.

    All slots together leave one thread for short tasks: stops, reports, entry tasks.
    """

    def __init__(self, threads: Callable[[], int]) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._taken: dict[str, int] = {}
        self._last_try: dict[str, float] = {}

    @contextmanager
    def acquire(self, dependency: str, *, all_but_one: bool = False) -> Iterator[bool]:
        """Whether there is a slot, released after the block; `all_but_one` thread instead of half."""
        with self._lock:
            taken, threads = self._taken.get(dependency, 0), self._threads()
            limit = threads if all_but_one else threads // 2
            all_taken = sum(self._taken.values())
            acquired = taken < max(1, limit) and (taken == 0 or all_taken < threads - 1)
            if acquired:
                self._taken[dependency] = taken + 1
        try:
            yield acquired
        finally:
            if acquired:
                with self._lock:
                    self._taken[dependency] -= 1

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


class _Pool:
    """The worker of this process, once there is one."""

    worker: Any = None

    def threads(self) -> int:
        """Each process of a prefork pool has one thread, which never asks for a second slot."""
        return int(getattr(self.worker, "concurrency", None) or 1)


_pool = _Pool()
bulkhead = Bulkhead(_pool.threads)
"""The bulkhead of this process."""


@signals.celeryd_init.connect(weak=False)
def _remember(instance: Any = None, **_: Any) -> None:
    _pool.worker = instance
