"""The websocket of a log on an event loop."""

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
from worker.platform.transport import tls_context, transport_error

READ_AHEAD_BYTES: Final = 64 * 1024
"""Bytes that may have come and not been taken; beyond, the kernel's buffers fill and the agent waits."""

_library_log = logging.getLogger(__name__)
# At DEBUG the library logs the handshake with its tokens.
_library_log.setLevel(logging.WARNING)

_DATA: Final = frozenset({Opcode.TEXT, Opcode.BINARY, Opcode.CONT})


async def websocket_batches(target: StreamTarget, reader: LogDecoder) -> AsyncGenerator[list[str]]:
    """Feed `reader` from the websocket until it is over or the agent closes; raises `ClientError`."""
    try:
        async with _opened(target) as websocket:
            with contextlib.closing(IdleTimeout(target.idle_timeout, websocket.expire)) as silence:
                while not reader.ended:
                    yield _lines(reader, await websocket.receive(silence))
            return
    except WebSocketException as error:
        failure = None if _closed_in_order(error) else _websocket_error(error)
    except OSError as error:
        failure = transport_error(error)
    # Outside of the except block: the original knows the URL.
    if failure is not None:
        raise failure


def _lines(reader: LogDecoder, messages: list[bytes]) -> list[str]:
    lines: list[str] = []
    for message in messages:
        if reader.ended:
            break
        lines += reader.feed_message(message)
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
            # Follows no redirect: the tokens would go to whoever the answer names.
            await websocket.handshake()
        yield websocket
    finally:
        websocket.close()


class _Websocket(asyncio.Protocol):
    """Messages as they come, all that came together at a time."""

    def __init__(self, protocol: ClientProtocol) -> None:
        self._protocol = protocol
        self._transport: asyncio.Transport | None = None
        self._messages: list[bytes] = []
        self._fragments: list[bytes] = []
        self._unread_bytes = 0
        self._waiter: asyncio.Future[None] | None = None

    async def handshake(self) -> None:
        """Return once messages may come; raises `WebSocketException` where the agent refuses."""
        while self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
            await self._wait()
        if self._protocol.handshake_exc is not None:
            raise self._protocol.handshake_exc

    async def receive(self, silence: IdleTimeout) -> list[bytes]:
        """The next ones; raises `ConnectionClosed`."""
        while not self._messages:
            if self._protocol.state is not State.OPEN:
                self._protocol.receive_eof()
                raise self._protocol.close_exc
            self._resume_reading()
            with silence:
                await self._wait()
        messages, self._messages = self._messages, []
        self._resume_reading()
        return messages

    def expire(self, error: Exception) -> None:
        """Whoever waits gets `error`."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def close(self) -> None:
        """Say goodbye and hang up; an agent with much to say yet would not come to its own for long."""
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
            if isinstance(event, Frame) and event.opcode in _DATA:
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
            # Nothing is the end of our side: the connection is closed with the whole.
            if data:
                self._transport.write(data)


_IN_ORDER = frozenset({1000, 1005})
_GOING_AWAY = frozenset({1001, 1012, 1013, 1014})
_TOO_BIG = 1009


def _closed_in_order(error: Exception) -> bool:
    """Whether the agent simply had no more to say. Whether the job has ended is another question."""
    return isinstance(error, ConnectionClosed) and error.rcvd is not None and error.rcvd.code in _IN_ORDER


def _websocket_error(error: Exception) -> ClientError:
    """The client error for what `websockets` raised."""
    if isinstance(error, ConnectionClosed):
        return _closed(error)
    if isinstance(error, InvalidStatus):
        return _refused(error)
    if isinstance(error, WebSocketException) and not isinstance(error.__cause__, EOFError | OSError):
        return WebSocketError("500 Internal Server Error: the agent does not speak websocket here", 500)
    return transport_error(error)


def _closed(error: ConnectionClosed) -> ClientError:
    if error.sent is not None and error.sent.code == _TOO_BIG and error.rcvd_then_sent is not True:
        return StreamLimitExceededError("429 Too Many Requests: one message is longer than the whole limit")
    if error.rcvd is None or error.rcvd.code in _GOING_AWAY:
        return ClientConnectionError("503 Service Unavailable: the connection was lost", 503)
    said = f"the agent closed the websocket ({error.rcvd.code}): {error.rcvd.reason}"
    return WebSocketError(f"500 Internal Server Error: {said}", 500, error.rcvd.reason)


def _refused(error: InvalidStatus) -> ClientError:
    response = error.response
    if 200 <= response.status_code < 300:
        detail = "the agent answered the handshake as if it were an ordinary request"
        return WebSocketError(f"500 Internal Server Error: {detail}", 500, detail)
    headers = {name.lower(): value for name, value in response.headers.raw_items()}
    return response_error(HttpResponse(response.status_code, headers, bytes(response.body or b"")))
