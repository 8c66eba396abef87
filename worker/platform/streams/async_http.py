"""The chunked stream on an event loop."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import aiohttp
from yarl import URL

from worker.platform.answers import error_of
from worker.platform.deadline import tls_context
from worker.platform.streams.connection import keep_alive
from worker.platform.streams.reader import LogReader
from worker.platform.streams.silence import Silence
from worker.platform.streams.target import StreamTarget, check_is_log
from worker.platform.wire import AnswerReader, wire_error

READ_AHEAD: Final = 32 * 1024
"""aiohttp reads no further while it holds twice as many bytes; then the agent waits."""


async def http_batches(target: StreamTarget, reader: LogReader) -> AsyncGenerator[list[str]]:
    """Feed `reader` from the stream until it is over or the agent closes; raises `ClientError`."""
    try:
        async with _session(target) as session, _opened(session, target) as stream:
            silence = Silence(target.silence, stream.set_exception)
            with contextlib.closing(silence):
                while not reader.over:
                    with silence:
                        data = await stream.readany()
                    if not data:
                        break
                    yield reader.chunk(data)
            return
    except (aiohttp.ClientError, OSError) as error:
        failure = wire_error(error)
    # Outside of the except block: the original knows the URL.
    raise failure


def _session(target: StreamTarget) -> aiohttp.ClientSession:
    # One a log: it lives long, and there is nothing to share.
    connect = min(target.connect, target.silence)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=tls_context(), force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect),
        read_bufsize=READ_AHEAD,
        trust_env=False,
    )


@contextlib.asynccontextmanager
async def _opened(
    session: aiohttp.ClientSession, target: StreamTarget
) -> AsyncIterator[aiohttp.StreamReader]:
    url = URL(target.stream_url, encoded=True)
    async with asyncio.timeout(target.silence):
        response = await session.get(url, headers=target.stream_headers(), allow_redirects=False)
    # Closed and not released: nothing else is ever asked over this connection.
    with contextlib.closing(response):
        async with asyncio.timeout(target.silence):
            await _check(response)
        if response.connection is not None and response.connection.transport is not None:
            keep_alive(response.connection.transport.get_extra_info("socket"))
        yield response.content


async def _check(response: aiohttp.ClientResponse) -> None:
    if 200 <= response.status < 300:
        return check_is_log(response.headers)
    reader = AnswerReader(response.status, response.headers)
    # An error says enough by its status; what it says beyond may break off.
    with contextlib.suppress(aiohttp.ClientError, OSError):
        async for chunk in response.content.iter_any():
            if not reader.add(chunk):
                break
    raise error_of(reader.answer())
