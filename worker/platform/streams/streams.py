"""The open logs of one client: read ahead in a few threads, all closed when the client is."""

import contextlib
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import Final, Protocol

from worker.platform.errors import ClientError
from worker.platform.streams.connection import LogConnection, closed_error
from worker.platform.streams.queue import LineQueue
from worker.platform.streams.target import may_fall_back

THREADS: Final = 5


class _Closable(Protocol):
    def close(self) -> None: ...


class LogStreams:
    """Follows logs for any number of threads.

    Five of them are read ahead by threads of the background, so that a reader that is busy for a moment does
    not hold its agent up; further ones are read by whoever asks, when it asks. The threads are daemons: a
    forgotten stream does not keep the process from ending.
    """

    def __init__(self, queue_size: int, threads: int = THREADS) -> None:
        self._queue_size = queue_size
        self._free = threading.Semaphore(threads)
        # An RLock: the collector may run anything in the middle of this.
        self._lock = threading.RLock()
        self._open: weakref.WeakSet[_Closable] = weakref.WeakSet()
        self._closed = False

    def follow(self, *openings: Callable[[], LogConnection]) -> Generator[str]:
        """The lines of a log; the next way of opening it is tried where one fails before its first line."""
        for opening in openings[:-1]:
            given, failure = False, None
            try:
                for line in self._lines(opening()):
                    given = True
                    yield line
            except ClientError as error:
                failure = error
            if failure is None:
                return
            if given or not may_fall_back(failure):
                raise failure
        yield from self._lines(openings[-1]())

    def close(self) -> None:
        """Close every connection; whoever waits for a line gets `StreamError`."""
        with self._lock:
            self._closed = True
            still_open = list(self._open)
        for each in still_open:
            each.close()

    def _lines(self, connection: LogConnection) -> Generator[str]:
        self._track(connection)
        try:
            for batch in self._batches(connection):
                yield from batch
        finally:
            connection.close()

    def _batches(self, connection: LogConnection) -> Iterator[list[str]]:
        if not self._free.acquire(blocking=False):
            yield from connection.batches()
            return
        queue = LineQueue(self._queue_size)
        reader = threading.Thread(target=_read_ahead, args=(connection, queue, self._free), daemon=True)
        try:
            self._track(queue)
            reader.start()
        except BaseException:
            self._free.release()
            raise
        try:
            yield from queue.batches()
        finally:
            queue.close()

    def _track(self, part: _Closable) -> None:
        with self._lock:
            if self._closed:
                raise closed_error()
            self._open.add(part)


def _read_ahead(connection: LogConnection, queue: LineQueue, free: threading.Semaphore) -> None:
    # Holds neither the client nor its streams, so that they can be collected.
    try:
        with contextlib.closing(connection.batches()) as batches:
            for batch in batches:
                if not queue.put(batch):
                    break
        queue.end(None)
    except Exception as error:
        queue.end(error)
    finally:
        free.release()
