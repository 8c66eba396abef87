"""The chunked stream on an event loop."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import httpx

from worker.platform.answers import error_of
from worker.platform.deadline import tls_context
from worker.platform.streams.connection import keepalive_options
from worker.platform.streams.reader import LogReader
from worker.platform.streams.target import StreamTarget, check_is_log
from worker.platform.wire import AnswerReader, no_cookies, wire_error


async def http_batches(target: StreamTarget, reader: LogReader) -> AsyncGenerator[list[str]]:
    """Feed `reader` from the stream until it is over or the agent closes; raises `ClientError`."""
    try:
        async with _client() as http, _opened(http, target) as response:
            async for chunk in response.aiter_raw():
                yield reader.chunk(chunk)
                if reader.over:
                    break
            return
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        failure = wire_error(error)
    # Outside of the except block: the original knows the URL.
    raise failure


def _client() -> httpx.AsyncClient:
    # One a log: it lives long, and a shared pool slows down with the number of its connections.
    transport = httpx.AsyncHTTPTransport(
        verify=tls_context(), trust_env=False, socket_options=keepalive_options()
    )
    return httpx.AsyncClient(transport=transport, cookies=no_cookies(), trust_env=False)


@contextlib.asynccontextmanager
async def _opened(http: httpx.AsyncClient, target: StreamTarget) -> AsyncIterator[httpx.Response]:
    request = http.build_request(
        "GET", target.stream_url, headers=target.stream_headers(), timeout=target.timeout()
    )
    async with asyncio.timeout(target.silence):
        response = await http.send(request, stream=True)
    try:
        async with asyncio.timeout(target.silence):
            await _check(response)
        yield response
    finally:
        await response.aclose()


async def _check(response: httpx.Response) -> None:
    if response.is_success:
        return check_is_log(response)
    reader = AnswerReader(response)
    # An error says enough by its status; what it says beyond may break off.
    with contextlib.suppress(httpx.HTTPError, OSError):
        async for chunk in response.aiter_bytes():
            if not reader.add(chunk):
                break
    raise error_of(reader.answer())
