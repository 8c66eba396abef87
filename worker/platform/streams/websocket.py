"""A job's log over a websocket, on an event loop."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final, cast

from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from worker.platform.deadlines import tls_context
from worker.platform.errors import (
    ClientConnectionError,
    ClientError,
    StreamLimitExceededError,
    WebSocketError,
)
from worker.platform.responses import HttpResponse, response_error
from worker.platform.streams.connection import (
    IdleTimeout,
    StreamTarget,
    enable_keepalive,
)
from worker.platform.streams.parser import LogDecoder
from worker.platform.transport import transport_error

READ_AHEAD_BYTES: Final = 64 * 1024
"""Unread bytes at which reading stops; then the kernel's buffers fill and the agent has to wait."""

_library_log = logging.getLogger(__name__)
# At DEBUG the library logs the handshake with its tokens.
_library_log.setLevel(logging.WARNING)

_DATA_OPCODES: Final = frozenset({Opcode.TEXT, Opcode.BINARY, Opcode.CONT})


async def websocket_batches(target: StreamTarget, decoder: LogDecoder) -> AsyncGenerator[list[str]]:
    """Read a log's websocket until the log has ended or the agent closes the connection.

    Args:
        target: The log.
        decoder: Is fed with the messages.

    Yields:
        The lines that the messages received together complete, sometimes none; first of all none, once the
        agent has accepted.

    Raises:
        ClientError: The connection fails or the agent responds with an error.
    """
    try:
        async with _opened(target) as websocket:
            yield []
            with contextlib.closing(IdleTimeout(target.idle_timeout, websocket.fail)) as idle_timeout:
                while not decoder.ended:
                    yield _lines(decoder, await websocket.receive(idle_timeout))
            return
    except WebSocketException as error:
        failure = None if _closed_properly(error) else _websocket_error(error)
    except OSError as error:
        failure = transport_error(error)
    # Raised outside of the except block: the caught error contains the URL and must not become a context.
    if failure is not None:
        raise failure


def _lines(decoder: LogDecoder, messages: list[bytes]) -> list[str]:
    lines: list[str] = []
    for message in messages:
        if decoder.ended:
            break
        lines += decoder.feed_message(message)
    return lines


@contextlib.asynccontextmanager
async def _opened(target: StreamTarget) -> AsyncIterator["_Websocket"]:
    uri = parse_uri(target.websocket_url)
    protocol = ClientProtocol(uri, max_size=target.limits.max_bytes, logger=_library_log)
    request = protocol.connect()
    request.headers.update({"User-Agent": "synapse-worker", **target.websocket_headers()})
    protocol.send_request(request)
    websocket = _Websocket(protocol)
    ssl = tls_context() if uri.secure else None
    try:
        async with asyncio.timeout(target.idle_timeout):
            async with asyncio.timeout(target.connect_timeout):
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: websocket, uri.host, uri.port, ssl=ssl)
            # This follows no redirect, which would send the tokens to another server.
            await websocket.handshake()
        yield websocket
    finally:
        websocket.close()


class _Websocket(asyncio.Protocol):
    """A connection that gives all messages received together at a time."""

    def __init__(self, protocol: ClientProtocol) -> None:
        self._protocol = protocol
        self._transport: asyncio.Transport | None = None
        self._messages: list[bytes] = []
        self._fragments: list[bytes] = []
        self._unread_bytes = 0
        self._waiter: asyncio.Future[None] | None = None

    async def handshake(self) -> None:
        """Wait for the agent to accept; raises `WebSocketException` if it rejects."""
        while self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
            await self._wait()
        if self._protocol.handshake_exc is not None:
            raise self._protocol.handshake_exc

    async def receive(self, idle_timeout: IdleTimeout) -> list[bytes]:
        """The next messages; raises `ConnectionClosed`."""
        while not self._messages:
            if self._protocol.state is not State.OPEN:
                self._protocol.receive_eof()
                raise self._protocol.close_exc
            self._resume_reading()
            with idle_timeout:
                await self._wait()
        messages, self._messages = self._messages, []
        self._resume_reading()
        return messages

    def fail(self, error: Exception) -> None:
        """Raise an error where data is waited for."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def close(self) -> None:
        """Close without waiting for the agent's close frame, which may be behind a lot of unread data."""
        if self._transport is None or self._transport.is_closing():
            return
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(1000)
        self._send()
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        enable_keepalive(transport.get_extra_info("socket"))
        self._send()

    def data_received(self, data: bytes) -> None:
        if self._protocol.state is State.CLOSED:
            return
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame) and event.opcode in _DATA_OPCODES:
                self._fragments.append(bytes(event.data))
                if event.fin:
                    self._messages.append(b"".join(self._fragments))
                    self._fragments.clear()
        self._send()
        self._unread_bytes += len(data)
        if self._unread_bytes > READ_AHEAD_BYTES and self._transport is not None:
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._protocol.receive_eof()
        self._wake()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _resume_reading(self) -> None:
        if self._unread_bytes > READ_AHEAD_BYTES and self._transport is not None:
            self._transport.resume_reading()
        self._unread_bytes = 0

    def _send(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        for data in self._protocol.data_to_send():
            # Empty data asks for a half-close; the whole connection is closed instead.
            if data:
                self._transport.write(data)


# Close codes of RFC 6455 and its registry: normal closure or no code; going away, restarts and bad gateways.
_NORMAL_CODES = frozenset({1000, 1005})
_GOING_AWAY_CODES = frozenset({1001, 1012, 1013, 1014})
_MESSAGE_TOO_BIG = 1009


def _closed_properly(error: Exception) -> bool:
    """Whether the agent ended the connection normally. That does not mean that the job has ended."""
    return isinstance(error, ConnectionClosed) and error.rcvd is not None and error.rcvd.code in _NORMAL_CODES


def _websocket_error(error: Exception) -> ClientError:
    """The client error for what `websockets` raised."""
    if isinstance(error, ConnectionClosed):
        return _close_error(error)
    if isinstance(error, InvalidStatus):
        return _handshake_error(error)
    if isinstance(error, WebSocketException) and not isinstance(error.__cause__, EOFError | OSError):
        return WebSocketError("500 Internal Server Error: the agent does not speak websocket here", 500)
    return transport_error(error)


def _close_error(error: ConnectionClosed) -> ClientError:
    if error.sent is not None and error.sent.code == _MESSAGE_TOO_BIG and error.rcvd_then_sent is not True:
        return StreamLimitExceededError("429 Too Many Requests: one message is longer than the whole limit")
    if error.rcvd is None or error.rcvd.code in _GOING_AWAY_CODES:
        return ClientConnectionError("503 Service Unavailable: the connection was lost", 503)
    detail = f"the agent closed the websocket ({error.rcvd.code}): {error.rcvd.reason}"
    return WebSocketError(f"500 Internal Server Error: {detail}", 500, error.rcvd.reason)


def _handshake_error(error: InvalidStatus) -> ClientError:
    response = error.response
    if 200 <= response.status_code < 300:
        detail = "the agent answered the handshake as if it were an ordinary request"
        return WebSocketError(f"500 Internal Server Error: {detail}", 500, detail)
    headers = {name.lower(): value for name, value in response.headers.raw_items()}
    return response_error(HttpResponse(response.status_code, headers, bytes(response.body or b"")))
