"""How many threads one neighbour may hold, so that a hanging one leaves some to the others."""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery import signals

SOONEST, LATEST = 0.5, 3.0
"""Seconds. Who found no turn comes back in between, at random, so that not all come at once."""


class Turns:
    """At most half of the threads work with a neighbour at a time; a thread never waits for its turn."""

    def __init__(self, threads: Callable[[], int]) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._taken: dict[str, int] = {}

    @contextmanager
    def take(self, neighbour: str) -> Iterator[bool]:
        """Whether there is a turn; it is over with the block."""
        with self._lock:
            taken = self._taken.get(neighbour, 0)
            mine = taken < max(1, self._threads() // 2)
            if mine:
                self._taken[neighbour] = taken + 1
        try:
            yield mine
        finally:
            if mine:
                with self._lock:
                    self._taken[neighbour] -= 1


def countdown() -> float:
    """Seconds until the next try of who found no turn."""
    return random.uniform(SOONEST, LATEST)


class _Pool:
    """The worker of this process, once there is one."""

    worker: Any = None

    def threads(self) -> int:
        """A pool of processes has one thread in each, which never asks for a second turn."""
        return int(getattr(self.worker, "concurrency", None) or 1)


_pool = _Pool()
turns = Turns(_pool.threads)
"""The process's."""


@signals.celeryd_init.connect(weak=False)
def _remember(instance: Any = None, **_: Any) -> None:
    _pool.worker = instance
