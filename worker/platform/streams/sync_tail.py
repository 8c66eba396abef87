"""The logs of a synchronous client, over a chunked stream or a websocket, read ahead in a few threads."""

import contextlib
import logging
import socket
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any, Final, Protocol

import httpx
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, reconnect

from worker.platform.errors import ClientError
from worker.platform.responses import error_of
from worker.platform.streams.connection import (
    LogConnection,
    StreamTarget,
    check_is_log,
    closed_error,
    closed_in_order,
    keep_alive,
    may_fall_back,
    websocket_error,
)
from worker.platform.streams.parser import LogReader
from worker.platform.transport import AnswerReader, deadline, tls_context, wire_error


class HttpLog:
    """Implements `LogConnection`."""

    def __init__(self, http: httpx.Client, target: StreamTarget) -> None:
        self._http, self._target = http, target
        self._lock = threading.Lock()
        self._response: httpx.Response | None = None
        self._closed = False

    def batches(self) -> Generator[list[str]]:
        reader = LogReader(self._target.limits)
        failure: ClientError | None
        try:
            with self._opened() as response:
                for chunk in response.iter_raw():
                    yield reader.chunk(chunk)
                    if reader.over:
                        break
                yield reader.end()
                failure = reader.failure
        # RuntimeError: httpx's, where the client was closed meanwhile.
        except (httpx.HTTPError, httpx.InvalidURL, RuntimeError, OSError) as error:
            failure = closed_error() if self._closed else wire_error(error)
        # Outside of the except block: the original knows the URL.
        if failure is not None:
            raise failure

    def close(self) -> None:
        with self._lock:
            self._closed = True
            sock = _socket_of(self._response)
        if sock is not None:
            # Unlike closing, this wakes a thread that reads; OSError: the other side was first.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[httpx.Response]:
        target = self._target
        with deadline(target.silence):
            request = self._http.build_request(
                "GET", target.stream_url, headers=target.stream_headers(), timeout=target.timeout()
            )
            response = self._http.send(request, stream=True)
        try:
            self._hold(response)
            with deadline(target.silence):
                _check(response)
            yield response
        finally:
            # Back in the pool, its socket is not ours to close any more.
            with self._lock:
                self._response = None
            response.close()

    def _hold(self, response: httpx.Response) -> None:
        with self._lock:
            if self._closed:
                raise closed_error()
            self._response = response
        if (sock := _socket_of(response)) is not None:
            keep_alive(sock)


def _socket_of(response: httpx.Response | None) -> socket.socket | None:
    # A transport other than the network's has none.
    stream = response.extensions.get("network_stream") if response is not None else None
    sock: socket.socket | None = stream.get_extra_info("socket") if stream is not None else None
    return sock


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return check_is_log(response.headers)
    reader = AnswerReader(response.status_code, response.headers)
    # An error says enough by its status; what it says beyond may break off.
    with contextlib.suppress(httpx.HTTPError, OSError):
        for chunk in response.iter_bytes():
            if not reader.add(chunk):
                break
    raise error_of(reader.answer())


CLOSE_SECONDS: Final = 0.2
"""How long to wait for the other side's goodbye; then the line is cut."""

FRAMES_AHEAD: Final = 8
"""Messages that wait in the library; behind them the kernel's buffers fill and the agent has to wait."""

quiet_log = logging.getLogger(__name__)
# At DEBUG the library writes the handshake down, tokens and all.
quiet_log.setLevel(logging.WARNING)


class _Direct(reconnect):
    """Does not follow redirects: the tokens would go to whoever the answer names."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


def _options(target: StreamTarget) -> dict[str, Any]:
    return {
        "ssl": tls_context() if target.websocket_url.startswith("wss:") else None,
        # Ray's own end sends nothing at all once packing is offered to it.
        "compression": None,
        "additional_headers": target.websocket_headers(),
        "user_agent_header": "synapse-worker",
        "proxy": None,
        "open_timeout": target.silence,
        # A reader that is slow does not read the answers to pings either.
        "ping_interval": None,
        "close_timeout": CLOSE_SECONDS,
        # A line of any length may come in one message; it is cut when it is here.
        "max_size": target.limits.max_bytes,
        "max_queue": FRAMES_AHEAD,
        "logger": quiet_log,
    }


class WebsocketLog:
    """Implements `LogConnection`."""

    def __init__(self, target: StreamTarget) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._websocket: ClientConnection | None = None
        self._closed = False

    def batches(self) -> Generator[list[str]]:
        reader = LogReader(self._target.limits)
        failure: ClientError | None
        try:
            with self._opened() as websocket:
                while not reader.over:
                    yield reader.message(websocket.recv(self._target.silence, decode=False))
            failure = reader.failure
        except (WebSocketException, OSError) as error:
            failure = closed_error() if self._closed else None
            if failure is None and not closed_in_order(error):
                failure = websocket_error(error)
        # Outside of the except block: the original knows the URL.
        if failure is not None:
            raise failure
        yield reader.end()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            websocket = self._websocket
        if websocket is not None:
            websocket.close()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[ClientConnection]:
        target = self._target
        with _Direct(target.websocket_url, **_options(target)) as websocket:
            with self._lock:
                if self._closed:
                    raise closed_error()
                self._websocket = websocket
            keep_alive(websocket.socket)
            yield websocket


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
