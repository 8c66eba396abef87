"""A log over HTTP's chunked stream, through the client's own connection pool."""

import contextlib
import socket
import threading
from collections.abc import Generator, Iterator

import httpx

from worker.platform.answers import error_of
from worker.platform.deadline import deadline
from worker.platform.errors import ClientError
from worker.platform.streams.connection import closed_error, keep_alive
from worker.platform.streams.reader import LogReader
from worker.platform.streams.target import StreamTarget, check_is_log
from worker.platform.wire import AnswerReader, wire_error


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
