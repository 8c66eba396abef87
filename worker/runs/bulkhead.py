"""How many threads one neighbour may hold, so that a hanging one leaves some to the others."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery import signals

MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.1, 6.0
"""Seconds. Who found no turn comes back soon, as most turns are short; then later and later, as some hang."""

SECONDS_BETWEEN_TRIES = 0.05
"""However many wait for a neighbour, a process is not kept busy by those who ask in vain."""


class Bulkhead:
    """At most half of the threads work with a neighbour at a time; a thread never waits for its turn.

    All turns together leave one thread for what is short: stops, reports, the doors.
    """

    def __init__(self, threads: Callable[[], int]) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._taken: dict[str, int] = {}
        self._last_try: dict[str, float] = {}

    @contextmanager
    def acquire(self, dependency: str, *, all_but_one: bool = False) -> Iterator[bool]:
        """Whether there is a turn; it is over with the block. `all_but_one` thread, not half of them."""
        with self._lock:
            taken, threads = self._taken.get(dependency, 0), self._threads()
            most = threads if all_but_one else threads // 2
            in_all = sum(self._taken.values())
            mine = taken < max(1, most) and (taken == 0 or in_all < threads - 1)
            if mine:
                self._taken[dependency] = taken + 1
        try:
            yield mine
        finally:
            if mine:
                with self._lock:
                    self._taken[dependency] -= 1

    def retry_countdown(self, dependency: str, tries: int) -> float:
        """Seconds until the next try of who found no turn; at random, so that not all come at once."""
        with self._lock:
            now = time.monotonic()
            last = max(self._last_try.get(dependency, now), now) + SECONDS_BETWEEN_TRIES
            self._last_try[dependency] = last
            first_free = last - now
        return max(
            first_free,
            random.uniform(0.5, 1.0) * min(MIN_RETRY_SECONDS * 2.0 ** min(tries, 20), MAX_RETRY_SECONDS),
        )


class _Pool:
    """The worker of this process, once there is one."""

    worker: Any = None

    def threads(self) -> int:
        """A pool of processes has one thread in each, which never asks for a second turn."""
        return int(getattr(self.worker, "concurrency", None) or 1)


_pool = _Pool()
bulkhead = Bulkhead(_pool.threads)
"""The process's."""


@signals.celeryd_init.connect(weak=False)
def _remember(instance: Any = None, **_: Any) -> None:
    _pool.worker = instance
