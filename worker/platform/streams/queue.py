"""Lines on their way from the thread that reads ahead to the one that asked for them."""

import threading
from collections import deque
from collections.abc import Iterator
from typing import Final

from worker.platform.streams.connection import closed_error

BATCH: Final = 100


class LineQueue:
    """Holds `size` lines at most: `put` waits until there is room, and so does the agent at the other end."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lines: deque[str] = deque()
        # With an RLock: the collector may close a forgotten stream in the middle of anything.
        self._changed = threading.Condition(threading.RLock())
        self._ended = self._closed = False
        self._failure: Exception | None = None

    def put(self, lines: list[str]) -> bool:
        """Add lines, as many at a time as there is room for; False when nobody wants them any more."""
        start = 0
        while start < len(lines):
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._lines) < self._size)
                if self._closed:
                    return False
                end = start + self._size - len(self._lines)
                self._lines.extend(lines[start:end])
                start = end
                self._changed.notify_all()
        return not self._closed

    def end(self, failure: Exception | None) -> None:
        """No more lines come; `failure` is raised after the last one."""
        with self._changed:
            self._ended, self._failure = True, failure
            self._changed.notify_all()

    def close(self) -> None:
        """Throw the lines away and let go of both sides."""
        with self._changed:
            self._closed = True
            self._lines.clear()
            self._changed.notify_all()

    def batches(self) -> Iterator[list[str]]:
        """The lines until the end."""
        while batch := self._next():
            yield batch
        if self._failure is not None:
            raise self._failure

    def _next(self) -> list[str]:
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._ended or self._closed)
            if self._closed:
                raise closed_error()
            batch = [self._lines.popleft() for _ in range(min(BATCH, len(self._lines)))]
            self._changed.notify_all()
            return batch
