"""What of the annotation a process has one of: the event loop, the clients on it, the pace of its news."""

import atexit
import threading
import time
from collections.abc import Callable
from functools import lru_cache

from worker.settings import settings
from worker.to_task.backends import Backends
from worker.to_task.loop import LoopThread

SECONDS_BETWEEN_NEWS = 0.5
MOST_REMEMBERED = 1_000


class Pace:
    """Lets a run's news pass so often and no oftener."""

    def __init__(
        self, seconds: float = SECONDS_BETWEEN_NEWS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._told: dict[str, float] = {}
        self._lock = threading.Lock()

    def is_due(self, job: str) -> bool:
        """Whether to tell now; then it counts as told."""
        now = self._clock()
        with self._lock:
            if now - self._told.get(job, -self._seconds) < self._seconds:
                return False
            if len(self._told) >= MOST_REMEMBERED:
                self._told.clear()
            self._told[job] = now
            return True


class Crew:
    """Made on first use, after the fork."""

    def __init__(self, loop: LoopThread, backends: Backends, pace: Pace) -> None:
        self.loop, self.backends, self.pace = loop, backends, pace

    def close(self) -> None:
        """Give the connections back and end the loop. A process that ends starts no threads for it."""
        if not self.loop.is_running:
            return
        self.loop.run(self.backends.aclose(), timeout=5)
        self.loop.close()


@lru_cache(maxsize=1)
def crew() -> Crew:
    """The crew of this process."""
    made = Crew(LoopThread(), Backends(settings()), Pace())
    atexit.register(made.close)
    return made
