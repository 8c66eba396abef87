"""A job's log on an event loop, which can follow thousands of them on one thread."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import aiohttp
from yarl import URL

from worker.platform.deadlines import tls_context
from worker.platform.errors import ClientError, StreamError, StreamLimitExceededError, WebSocketError
from worker.platform.responses import response_error
from worker.platform.streams.connection import (
    IdleTimeout,
    StreamTarget,
    check_log_headers,
    enable_keepalive,
)
from worker.platform.streams.parser import LogDecoder, StreamProtocol, Transport, transports_for
from worker.platform.transport import ResponseReader, transport_error

READ_AHEAD_BYTES: Final = 32 * 1024
"""aiohttp stops reading while twice as many bytes are unread; then the agent has to wait."""


Batches = AsyncGenerator[list[str]]
"""Lines of a log, as many at a time as were received together."""


async def http_batches(target: StreamTarget, decoder: LogDecoder) -> Batches:
    """Read a log's chunked HTTP stream until the log has ended or the agent closes the connection.

    Args:
        target: The log.
        decoder: Is fed with the stream.

    Yields:
        The lines that each chunk completes, sometimes none; first of all none, once the agent has accepted.

    Raises:
        ClientError: The connection fails or the agent responds with an error.
    """
    try:
        async with _session(target) as session, _opened(session, target) as stream:
            yield []
            with contextlib.closing(IdleTimeout(target.idle_timeout, stream.set_exception)) as idle_timeout:
                while not decoder.ended:
                    with idle_timeout:
                        data = await stream.readany()
                    if not data:
                        break
                    yield decoder.feed_chunk(data)
            return
    except (aiohttp.ClientError, OSError) as error:
        failure = transport_error(error)
    # Raised outside of the except block: the caught error contains the URL and must not become a context.
    raise failure


def _session(target: StreamTarget) -> aiohttp.ClientSession:
    # A session for each log: connections are long-lived and never reused.
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
    # Closed, not released: the connection is not reused.
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
    # The status of an error says enough, even if its body cannot be read to the end.
    with contextlib.suppress(aiohttp.ClientError, OSError):
        async for chunk in response.content.iter_any():
            if not reader.feed(chunk):
                break
    raise response_error(reader.response())


class AsyncLogTail:
    """One job's log, line by line, from its beginning. It can be read once.

    Nothing is sent before `open` is called or the first line is asked for. After the iteration `completed`
    tells whether the agent said that the log is complete. If not, the connection was merely closed and the
    job may still be running; `partial_line` is then the text behind the last line end. It is not among the
    lines, because the next connection may bring the whole line.
    """

    def __init__(self, target: StreamTarget, protocol: StreamProtocol = "auto") -> None:
        """Check the arguments; nothing is sent.

        Args:
            target: The log.
            protocol: "stream" (HTTP), "websocket", or "auto": a websocket, and HTTP if that fails before the
                first line.

        Raises:
            ValidationError: There is no such protocol.
        """
        self._target = target
        self._transports = transports_for(protocol)
        self._decoder = LogDecoder(target.limits)
        self._connection: Batches | None = None
        self._rest: list[str] = []

    async def open(self) -> None:
        """Connect now, so that what fails is raised here and not where the first line is asked for.

        Iterate afterwards, also if only to close the connection.

        Raises:
            ClientError: The connection fails or the agent responds with an error, over all of the protocol's
                transports.
        """
        while True:
            self._decoder = LogDecoder(self._target.limits)
            try:
                connection = self._read(self._transports[0])
                await anext(connection, None)
            except ClientError as error:
                if len(self._transports) == 1 or not _may_fall_back(error):
                    raise
                self._transports = self._transports[1:]
            else:
                self._connection = connection
                return

    @property
    def completed(self) -> bool:
        """Whether the agent said that the log is complete."""
        return self._decoder.completed

    @property
    def partial_line(self) -> str | None:
        """The beginning of a line whose end was not received, or None."""
        return self._rest[-1] if self._rest else None

    async def __aiter__(self) -> AsyncIterator[str]:
        async with contextlib.aclosing(self.batches()) as batches:
            async for batch in batches:
                for line in batch:
                    yield line

    async def batches(self, *, include_partial: bool = False) -> Batches:
        """Iterate over batches of lines. Close the iterator (`aclosing`) when leaving it early.

        Args:
            include_partial: Whether text behind the last line end is a line, too, if the agent closed the
                connection properly.

        Yields:
            Lines without their ends, as many at a time as were received together.

        Raises:
            ClientError: The log cannot be read any further; lines before that have been yielded.
        """
        for left, transport in enumerate(self._transports, 1 - len(self._transports)):
            failure, has_lines = None, False
            connection, self._connection = self._connection, None
            if connection is None:
                self._decoder = LogDecoder(self._target.limits)
            try:
                async with contextlib.aclosing(connection or self._read(transport)) as batches:
                    async for batch in batches:
                        if batch:
                            has_lines = True
                            yield batch
            except ClientError as error:
                failure = error
            if failure is None:
                failure = self._decoder.failure
            self._rest = self._decoder.flush()
            if failure is None and include_partial:
                yield self._rest
                failure = self._decoder.failure
            if failure is None:
                return
            if has_lines or left == 0 or not _may_fall_back(failure):
                raise failure

    def _read(self, transport: Transport) -> Batches:
        if transport == "stream":
            return http_batches(self._target, self._decoder)
        try:
            # Imported here, because plugin code may run where the package is not installed.
            from worker.platform.streams.websocket import websocket_batches
        except ImportError:
            missing = _websocket_missing()
        else:
            return websocket_batches(self._target, self._decoder)
        raise missing


def _may_fall_back(error: ClientError) -> bool:
    """Whether another transport may succeed where one failed before the first line."""
    # An error event of the agent (a plain StreamError) and the limits do not depend on the transport.
    return not isinstance(error, StreamLimitExceededError) and type(error) is not StreamError


def _websocket_missing() -> WebSocketError:
    detail = "websockets are not available: the package websockets is not installed"
    return WebSocketError(f"500 Internal Server Error: {detail}", 500, detail)
