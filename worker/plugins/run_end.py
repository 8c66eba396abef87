"""Waits for plugin code and for Ray: each is abandoned soon after the run for which it waits has ended."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from worker.plugins.errors import RunEndedError

CHECK_INTERVAL_SECONDS = 1.0
"""How often it is looked up whether a run has ended, by all waits of one step together."""


class Lock(Protocol):
    """A `threading.Lock`."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...


class RunEnd:
    """Whether the run of a step has ended; `has_ended` looks it up."""

    def __init__(self, has_ended: Callable[[], bool]) -> None:
        self._has_ended = has_ended
        self._lock = threading.Lock()
        self._checked = time.monotonic()
        self._ended = False

    def check(self) -> None:
        """Raise `RunEndedError` if the run had ended when that was last looked up."""
        with self._lock:
            if not self._ended and time.monotonic() - self._checked >= CHECK_INTERVAL_SECONDS:
                self._ended = self._has_ended()
                self._checked = time.monotonic()
            if self._ended:
                raise RunEndedError


_run_end: ContextVar[RunEnd | None] = ContextVar("run_end", default=None)


@contextmanager
def waits_for_run(has_ended: Callable[[], bool]) -> Iterator[None]:
    """All waits within the block are for one run: they end with `RunEndedError` once it has ended."""
    token = _run_end.set(RunEnd(has_ended))
    try:
        yield
    finally:
        _run_end.reset(token)


def check_run() -> None:
    """Raise `RunEndedError` if the run whose step this is has ended, as of the last second."""
    run_end = _run_end.get()
    if run_end is not None:
        run_end.check()


def wait_for(is_done: Callable[[float], bool], seconds: float = float("inf")) -> bool:
    """Whether `is_done` was true within `seconds`. It gets the seconds that it may wait itself.

    Raises `RunEndedError` within about a second after the run's end.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        if is_done(max(0.0, min(left, CHECK_INTERVAL_SECONDS))):
            return True
        if left <= CHECK_INTERVAL_SECONDS:
            return False
        check_run()


@contextmanager
def held(lock: Lock) -> Iterator[None]:
    """Hold a lock whose holder may wait for Ray; raises `RunEndedError` as `wait_for` does."""
    wait_for(lambda seconds: lock.acquire(timeout=seconds))
    try:
        yield
    finally:
        lock.release()
