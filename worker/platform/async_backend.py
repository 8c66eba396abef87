"""The asynchronous client of the backend, for annotating: one event loop keeps many requests in flight.

It uses aiohttp, because httpx spends most of a request's time in its own objects. Requests, responses, errors
and retries are those of the synchronous client.
"""

import asyncio
import time
from collections.abc import Mapping
from io import BytesIO
from typing import Self

import aiohttp
from yarl import URL

from shared.messages import JsonObject
from worker import metrics, tracing
from worker.platform.backend import BackendClient
from worker.platform.backend_requests import (
    annotation_request,
    backend_headers,
    data_unit_request,
    plugin_run_request,
    task_request,
)
from worker.platform.client import JSON_BODY
from worker.platform.deadlines import KEEPALIVE_SECONDS, tls_context
from worker.platform.errors import ClientError
from worker.platform.requests import BaseUrl, Json, Request, encode_body
from worker.platform.responses import HttpResponse, decode_response
from worker.platform.retries import RetryPolicy
from worker.platform.transport import (
    CLIENT_CLOSED,
    ResponseReader,
    Timeouts,
    Unpacker,
    default_headers,
    recover_response,
)

_LARGE_BYTES = 256 * 1024


class AsyncBackendClient:
    """The platform's backend, for many calls at once. Create and close it inside the running event loop."""

    def __init__(
        self,
        base_url: str,
        access_token: str,
        *,
        tenant: str | None = None,
        agent_token: str | None = None,
        timeout: Mapping[str, float] | None = None,
        connections: int = 64,
        retries: RetryPolicy | None = None,
    ) -> None:
        """Connect to nothing yet; mask the tokens in this process from now on.

        Args:
            base_url: `http(s)://host[:port][/path]`.
            access_token: The access token.
            tenant: The tenant, if there are several.
            agent_token: The token of the agent that calls, if one does.
            timeout: Seconds, as in `BaseClient`.
            connections: Requests in flight at once, at most. Further ones wait.
            retries: How often a request that may be sent again is sent.

        Raises:
            ValueError: An argument is unusable; the message does not show its value.
            RuntimeError: No event loop is running.
        """
        asyncio.get_running_loop()
        self._base = BaseUrl(base_url)
        timeouts = Timeouts.from_argument(timeout)
        self._retries = retries or RetryPolicy()
        # Acquired before the timeout of an attempt starts: waiting here is not the service's fault.
        self._slots = asyncio.Semaphore(connections)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=connections, ssl=tls_context(), keepalive_timeout=KEEPALIVE_SECONDS
            ),
            headers=default_headers(backend_headers(access_token, tenant, agent_token)),
            timeout=aiohttp.ClientTimeout(
                total=timeouts.total, sock_connect=timeouts.connect, sock_read=timeouts.read
            ),
            # A session cookie would outlive the token that it was issued for.
            cookie_jar=aiohttp.DummyCookieJar(),
            # aiohttp would unpack a whole chunk, however large it becomes.
            auto_decompress=False,
            trust_env=False,
        )

    async def get_task(self, task: int | str) -> JsonObject:
        """See `BackendClient.get_task`."""
        return await self._send_for_object(task_request(task))

    async def get_data_unit(self, data_unit: int | str) -> JsonObject:
        """See `BackendClient.get_data_unit`."""
        return await self._send_for_object(data_unit_request(data_unit))

    async def annotate_task_data(
        self, task: int | str, data: Mapping[str, Json], schema: str | None = None
    ) -> JsonObject:
        """See `BackendClient.annotate_task_data`."""
        return await self._send_for_object(annotation_request(task, data, schema))

    async def run_plugin(self, code: str, data: Mapping[str, Json]) -> Json:
        """See `BackendClient.run_plugin`."""
        return await self._send(plugin_run_request(code, data))

    async def aclose(self) -> None:
        """Close the connections. Later calls raise `ClientError`."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _send(self, request: Request) -> Json:
        content = encode_body(request)
        began, attempt = time.monotonic(), 1
        while True:
            try:
                async with self._slots:
                    response = await self._exchange(request, content)
                    return decode_response(response, request.expect, len(content or b""))
            except ClientError as error:
                elapsed = time.monotonic() - began
                seconds = self._retries.seconds_until_retry(error, request, attempt, elapsed)
                if seconds is None:
                    raise
            await asyncio.sleep(seconds)
            attempt += 1

    async def _send_for_object(self, request: Request) -> JsonObject:
        response: JsonObject = await self._send(request)
        return response

    async def _exchange(self, request: Request, content: bytes | None) -> HttpResponse:
        if self._session.closed:
            raise ClientError(CLIENT_CLOSED, 400)
        url = URL(self._base.join(request.path, request.query), encoded=True)
        service, body_type = BackendClient.service, JSON_BODY if content is not None else {}
        reader: ResponseReader | None = None
        began = time.monotonic()
        with tracing.request_span(service, request.method, request.path) as span:
            headers = {**body_type, **span.headers}
            try:
                async with self._session.request(
                    request.method, url, data=_body(content), headers=headers, allow_redirects=False
                ) as response:
                    span.status = response.status
                    reader = ResponseReader(response.status, response.headers)
                    unpacked = Unpacker(response.headers.get("content-encoding", ""))
                    async for chunk in response.content.iter_any():
                        if not reader.feed(unpacked.feed(chunk)):
                            break
                    metrics.observe_request(service, request.method, response.status, began)
                    return reader.response()
            except (aiohttp.ClientError, OSError) as error:
                failure = error
            metrics.observe_request(service, request.method, 0, began)
            return recover_response(failure, reader)


def _body(content: bytes | None) -> bytes | BytesIO | None:
    """A large body is written piece by piece, so that the event loop does other things meanwhile."""
    return BytesIO(content) if content is not None and len(content) > _LARGE_BYTES else content
