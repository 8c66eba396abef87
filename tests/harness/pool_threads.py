"""Threads of a worker's pool that hold slots of its bulkhead."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeAlias

from worker.runs.bulkhead import Bulkhead, half


class PoolThread:
    """A thread of a pool; it keeps the slots that it gets until it is asked to give them back."""

    def __init__(self, bulkhead: Bulkhead) -> None:
        self._bulkhead = bulkhead
        self._executor = ThreadPoolExecutor(1)
        self._slots = ExitStack()

    def acquire(self, dependency: str, most: Callable[[int], int] = half, *, waits: bool = False) -> bool:
        slot = self._bulkhead.acquire(dependency, most, waits=waits)
        return self._executor.submit(self._slots.enter_context, slot).result()

    def begin_step(self) -> bool:
        return self._executor.submit(self._slots.enter_context, self._bulkhead.step()).result()

    def release_all(self) -> None:
        self._executor.submit(self._slots.close).result()

    def close(self) -> None:
        self.release_all()
        self._executor.shutdown()


NewThread: TypeAlias = Callable[[Bulkhead], PoolThread]
