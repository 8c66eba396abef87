"""The process's one event loop, in a thread of its own."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Starts with the first use, so that a forked process has its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = 0

    def start(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run it on the loop, beside the caller."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._running())

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run it on the loop and wait for it."""
        return self.start(coroutine).result(timeout)

    @property
    def is_running(self) -> bool:
        """Whether there is a loop now, in this process."""
        return self._loop is not None and self._process == os.getpid()

    def close(self) -> None:
        """End the loop and its thread; a later use starts anew."""
        with self._lock:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is None or thread is None:
            return
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is not None and self.is_running:
                return self._loop
            loop = self._loop = asyncio.new_event_loop()
            self._process = os.getpid()
            self._thread = threading.Thread(target=loop.run_forever, name="annotation-loop", daemon=True)
            self._thread.start()
            return loop
