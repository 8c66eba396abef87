"""Logs for synchronous callers: a bridge over the asynchronous tail, run by a background event loop."""

import asyncio
import atexit
import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Coroutine, Generator, Iterator
from concurrent.futures import Future
from typing import Final

from worker.platform.errors import StreamError
from worker.platform.streams.tail import AsyncLogTail

_LINES_PER_TAKE: Final = 100
_STOP_SECONDS: Final = 2.0


class _BackgroundLoop:
    """One event loop for the process, on a daemon thread that starts with the first log."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._of_parent: list[asyncio.AbstractEventLoop] = []

    def submit(self, coroutine: Coroutine[object, object, None]) -> Future[None]:
        with self._lock:
            loop = self._loop or self._start()
        return asyncio.run_coroutine_threadsafe(coroutine, loop)

    def stop(self) -> None:
        """Close every connection, instead of leaving open ones to the interpreter's teardown."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(_STOP_SECONDS)

    def forget(self) -> None:
        """After a fork: the thread exists in the parent only."""
        self._lock = threading.Lock()
        if self._loop is not None:
            # Kept alive: its selector is the parent's too, and closing it here would deregister the parent's
            # sockets.
            self._of_parent.append(self._loop)
        self._loop = self._thread = None

    def _start(self) -> asyncio.AbstractEventLoop:
        # With a factory the runner does not make its loop the calling thread's own.
        runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = runner.get_loop()
        self._thread = threading.Thread(target=_run, args=(runner,), name="log-streams", daemon=True)
        self._thread.start()
        return self._loop


def _run(runner: asyncio.Runner) -> None:
    # The runner cancels what is left when the loop stops.
    with runner:
        runner.get_loop().run_forever()


_background = _BackgroundLoop()
atexit.register(_background.stop)
os.register_at_fork(after_in_child=_background.forget)


class _SyncLogTail:
    """One log: the background loop reads at most `queue_size` lines ahead of the thread that iterates.

    It refers neither to the client nor to the caller's generator, so both can be garbage-collected.
    """

    def __init__(self, tail: AsyncLogTail, queue_size: int) -> None:
        self._tail = tail
        self._queue_size = queue_size
        self._lines: deque[str] = deque()
        # Reentrant: the garbage collector may close a forgotten log while this thread holds the lock.
        self._changed = threading.Condition(threading.RLock())
        self._has_space = asyncio.Event()
        self._waiting_for_space: asyncio.AbstractEventLoop | None = None
        self._opened = self._ended = self._closed = False
        self._failure: Exception | None = None
        self._reader: Future[None] | None = None
        self._pid = os.getpid()

    def open(self) -> None:
        """Connect and begin to read ahead; raises what the tail raises."""
        self._start()
        with self._changed:
            self._changed.wait_for(lambda: self._opened or self._ended or self._closed)
            if self._closed:
                raise _closed_error()
            if not self._opened and self._failure is not None:
                raise self._failure

    def __iter__(self) -> Iterator[str]:
        if self._reader is None:
            self._start()
        while lines := self._take():
            yield from lines
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Discard the lines and close the connection; a thread that waits for a line gets `StreamError`."""
        with self._changed:
            self._closed = True
            self._lines.clear()
            self._changed.notify_all()
        if self._reader is not None:
            self._reader.cancel()

    def _start(self) -> None:
        with self._changed:
            if self._closed:
                raise _closed_error()
            self._reader = _background.submit(self._read_ahead())

    def _take(self) -> list[str]:
        """The next lines, an empty list at the end of the log."""
        if self._pid != os.getpid():
            # The parent of this process reads it.
            raise _closed_error()
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._ended or self._closed)
            if self._closed:
                raise _closed_error()
            lines = [self._lines.popleft() for _ in range(min(_LINES_PER_TAKE, len(self._lines)))]
            if self._waiting_for_space is not None:
                self._waiting_for_space.call_soon_threadsafe(self._has_space.set)
                self._waiting_for_space = None
            return lines

    async def _read_ahead(self) -> None:
        failure: Exception | None = None
        try:
            await self._tail.open()
            with self._changed:
                self._opened = True
                self._changed.notify_all()
            async with contextlib.aclosing(self._tail.batches(include_partial=True)) as batches:
                async for batch in batches:
                    await self._put(batch)
        except asyncio.CancelledError:
            # Either `close` cancelled it, or the process is about to end.
            self.close()
            raise
        except Exception as error:
            failure = error
        with self._changed:
            self._ended, self._failure = True, failure
            self._changed.notify_all()

    async def _put(self, lines: list[str]) -> None:
        """Add the lines as there is space for them. While this waits the connection is not read."""
        while lines := self._add(lines):
            await self._has_space.wait()

    def _add(self, lines: list[str]) -> list[str]:
        """Add as many lines as there is space for and return the others."""
        with self._changed:
            space = self._queue_size - len(self._lines)
            self._lines.extend(lines[:space])
            self._changed.notify_all()
            if space < len(lines):
                self._has_space.clear()
                self._waiting_for_space = asyncio.get_running_loop()
        return lines[space:]


class LogStreams:
    """The logs that one synchronous client follows, for any number of threads.

    Every log is read ahead on the event loop of this process, so that a reader that is busy for a moment does
    not hold its agent up. The loop's thread is a daemon: an open log does not keep the process from ending.
    """

    def __init__(self, queue_size: int) -> None:
        """Follow nothing yet.

        Args:
            queue_size: Lines of one log that are read ahead of a slow reader, at most (the Ray client's
                document: 1,000).
        """
        self._queue_size = queue_size
        # Reentrant: the garbage collector may close a forgotten client while this thread holds the lock.
        self._lock = threading.RLock()
        self._open: weakref.WeakSet[_SyncLogTail] = weakref.WeakSet()
        self._closed = False

    def follow(self, tail: AsyncLogTail, *, announce: bool) -> Generator[str]:
        """Iterate over the lines of a log; a last line without an end is one of them.

        Nothing is sent before the first item is asked for. Leaving the iteration early closes the connection.

        Args:
            tail: The log, not read yet.
            announce: Whether the first item is an empty text, which says that the agent has accepted.

        Yields:
            The lines, without their ends.

        Raises:
            ClientError: What the tail raises, after the lines before the failure.
            StreamError: `close` was called, here or in another thread.
        """
        log = _SyncLogTail(tail, self._queue_size)
        self._track(log)
        try:
            if announce:
                log.open()
                yield ""
            yield from log
        finally:
            log.close()

    def close(self) -> None:
        """Close every connection, from any thread; a thread that waits for a line gets `StreamError`."""
        with self._lock:
            self._closed = True
            still_open = list(self._open)
        for log in still_open:
            log.close()

    def _track(self, log: _SyncLogTail) -> None:
        with self._lock:
            if self._closed:
                raise _closed_error()
            self._open.add(log)


def _closed_error() -> StreamError:
    return StreamError("500 Internal Server Error: the stream was closed on this side", 500)
