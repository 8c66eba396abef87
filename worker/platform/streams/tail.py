"""A log on an event loop: for a relay that follows a thousand of them without a thread each."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import aiohttp
from yarl import URL

from worker.platform.errors import ClientError, StreamError, StreamLimitExceededError, WebSocketError
from worker.platform.responses import response_error
from worker.platform.streams.connection import (
    IdleTimeout,
    StreamTarget,
    check_log_headers,
    enable_keepalive,
)
from worker.platform.streams.parser import LogDecoder, StreamProtocol, Transport, transports_for
from worker.platform.transport import ResponseReader, tls_context, transport_error

READ_AHEAD_BYTES: Final = 32 * 1024
"""aiohttp reads no further while it holds twice as many bytes; then the agent waits."""


async def http_batches(target: StreamTarget, reader: LogDecoder) -> AsyncGenerator[list[str]]:
    """Feed `reader` from the stream until it is over or the agent closes; raises `ClientError`."""
    try:
        async with _session(target) as session, _opened(session, target) as stream:
            silence = IdleTimeout(target.idle_timeout, stream.set_exception)
            with contextlib.closing(silence):
                while not reader.ended:
                    with silence:
                        data = await stream.readany()
                    if not data:
                        break
                    yield reader.feed_chunk(data)
            return
    except (aiohttp.ClientError, OSError) as error:
        failure = transport_error(error)
    # Outside of the except block: the original knows the URL.
    raise failure


def _session(target: StreamTarget) -> aiohttp.ClientSession:
    # One a log: it lives long, and there is nothing to share.
    connect = min(target.connect_timeout, target.idle_timeout)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls_context(), force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect),
        read_bufsize=READ_AHEAD_BYTES,
        trust_env=False,
    )


@contextlib.asynccontextmanager
async def _opened(
    session: aiohttp.ClientSession, target: StreamTarget
) -> AsyncIterator[aiohttp.StreamReader]:
    url = URL(target.stream_url, encoded=True)
    async with asyncio.timeout(target.idle_timeout):
        response = await session.get(url, headers=target.stream_headers(), allow_redirects=False)
    # Closed and not released: nothing else is ever asked over this connection.
    with contextlib.closing(response):
        async with asyncio.timeout(target.idle_timeout):
            await _check(response)
        if response.connection is not None and response.connection.transport is not None:
            enable_keepalive(response.connection.transport.get_extra_info("socket"))
        yield response.content


async def _check(response: aiohttp.ClientResponse) -> None:
    if 200 <= response.status < 300:
        return check_log_headers(response.headers)
    reader = ResponseReader(response.status, response.headers)
    # An error says enough by its status; what it says beyond may break off.
    with contextlib.suppress(aiohttp.ClientError, OSError):
        async for chunk in response.content.iter_any():
            if not reader.feed(chunk):
                break
    raise response_error(reader.response())


Batches = AsyncGenerator[list[str]]


class AsyncLogTail:
    """One job's log, line by line. Nothing is sent before the first line is asked for; to be read once.

    When the iteration ends, well or not, `completed` tells whether the agent said so: otherwise the line was
    merely closed, and whether the job is over has to be asked for. `rest` is then what stood behind the last
    line end; it is not among the lines, because another connection may bring the whole of that line.
    """

    def __init__(self, target: StreamTarget, protocol: StreamProtocol = "auto") -> None:
        self._target = target
        self._transports = transports_for(protocol)
        self._reader = LogDecoder(target.limits)
        self._rest: list[str] = []

    @property
    def completed(self) -> bool:
        """Whether the agent said that the log is complete."""
        return self._reader.completed

    @property
    def partial_line(self) -> str | None:
        """The beginning of a line whose end has not come."""
        return self._rest[-1] if self._rest else None

    async def __aiter__(self) -> AsyncIterator[str]:
        async with contextlib.aclosing(self.batches()) as batches:
            async for batch in batches:
                for line in batch:
                    yield line

    async def batches(self, *, include_partial: bool = False) -> Batches:
        """The lines, as many at a time as came together. Close it (`aclosing`) when leaving it early.

        With `include_rest` what stands behind the last line end is a line, too, if the agent closed in order.
        """
        for left, transport in enumerate(self._transports, 1 - len(self._transports)):
            failure, given = None, False
            self._reader = LogDecoder(self._target.limits)
            try:
                async with contextlib.aclosing(self._read(transport)) as batches:
                    async for batch in batches:
                        if batch:
                            given = True
                            yield batch
            except ClientError as error:
                failure = error
            if failure is None:
                failure = self._reader.failure
            self._rest = self._reader.flush()
            if failure is None and include_partial:
                yield self._rest
                failure = self._reader.failure
            if failure is None:
                return
            if given or left == 0 or not _may_fall_back(failure):
                raise failure

    def _read(self, transport: Transport) -> Batches:
        if transport == "stream":
            return http_batches(self._target, self._reader)
        try:
            # Imported here because plugin code may run where the package is not installed.
            from worker.platform.streams.websocket import websocket_batches
        except ImportError:
            missing = _websocket_missing()
        else:
            return websocket_batches(self._target, self._reader)
        raise missing


def _may_fall_back(error: ClientError) -> bool:
    """Whether another protocol may do what failed with `error` before a line had come."""
    # What the agent itself said of the log (a plain StreamError), and limits, hold for either protocol.
    return not isinstance(error, StreamLimitExceededError) and type(error) is not StreamError


def _websocket_missing() -> WebSocketError:
    detail = "websockets are not available: the package websockets is not installed"
    return WebSocketError(f"500 Internal Server Error: {detail}", 500, detail)
