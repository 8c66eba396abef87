"""The backend's client for the annotation path, where one event loop keeps many requests in flight.

Over aiohttp's connections, because httpx's own pool slows down with the number of waiting requests. Requests,
answers, errors and retries are the sync client's.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, Self

import aiohttp
import httpx
import tenacity
from httpx_aiohttp import AiohttpTransport

from worker.platform import backend
from worker.platform.backend import backend_headers
from worker.platform.errors import ClientError
from worker.platform.requests import BaseUrl, Request, encode_body
from worker.platform.responses import HttpResponse, RetryPolicy, decode_response
from worker.platform.transport import (
    CLIENT_CLOSED,
    KEEPALIVE_SECONDS,
    ResponseReader,
    Timeouts,
    default_headers,
    recover_response,
    rejecting_cookie_jar,
    tls_context,
)


class AsyncBackendClient:
    """The backend at `base_url`, for many calls at once. To be made and closed inside the running loop."""

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
        asyncio.get_running_loop()
        self._base = BaseUrl(base_url)
        self._timeouts = Timeouts.from_argument(timeout)
        self._retries = retries or RetryPolicy()
        # Taken before the clock of an attempt starts: waiting in the queue is not the service's fault.
        self._slots = asyncio.Semaphore(connections)
        self._http = httpx.AsyncClient(
            headers=default_headers(backend_headers(access_token, tenant, agent_token)),
            timeout=self._timeouts.to_httpx(),
            transport=AiohttpTransport(verify=tls_context(), client=_session(connections)),
            cookies=rejecting_cookie_jar(),
            trust_env=False,
            follow_redirects=False,
        )

    async def get_task(self, task: int | str) -> dict[str, Any]:
        """A task with its data and its data unit."""
        return await self._send_for_object(backend.task_request(task))

    async def get_data_unit(self, data_unit: int | str) -> dict[str, Any]:
        """A data unit with its files."""
        return await self._send_for_object(backend.data_unit_request(data_unit))

    async def annotate_task_data(
        self, task: int | str, data: Mapping[str, Any], schema: str | None = None
    ) -> dict[str, Any]:
        """Submit a task's annotation; `schema="any"` has the backend take any shape."""
        return await self._send_for_object(backend.annotation_request(task, data, schema))

    async def run_plugin(self, code: str, data: Mapping[str, Any]) -> Any:
        """Run a plugin's action: an inference answers with any JSON. Sent once."""
        return await self._send(backend.plugin_run_request(code, data))

    async def aclose(self) -> None:
        """Give the connections back."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _send(self, request: Request) -> Any:
        content = encode_body(request)
        attempts = tenacity.AsyncRetrying(**self._retries.tenacity_options(request))
        return await attempts(self._attempt, request, content)

    async def _send_for_object(self, request: Request) -> dict[str, Any]:
        answer: dict[str, Any] = await self._send(request)
        return answer

    async def _attempt(self, request: Request, content: bytes | None) -> Any:
        async with self._slots:
            return decode_response(await self._exchange(request, content), request.expect)

    async def _exchange(self, request: Request, content: bytes | None) -> HttpResponse:
        if self._http.is_closed:
            raise ClientError(CLIENT_CLOSED, 400)
        url = self._base.join(request.path, request.query)
        headers = {"Content-Type": "application/json"} if content is not None else None
        reader: ResponseReader | None = None
        try:
            async with (
                asyncio.timeout(self._timeouts.total),
                self._http.stream(request.method, url, content=content, headers=headers) as response,
            ):
                reader = ResponseReader(response.status_code, response.headers)
                async for chunk in response.aiter_bytes():
                    if not reader.feed(chunk):
                        break
                return reader.response()
        # Not every error of aiohttp is made one of httpx by the transport.
        except (httpx.HTTPError, httpx.InvalidURL, aiohttp.ClientError, OSError) as error:
            failure = error
        return recover_response(failure, reader)


def _session(connections: int) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(
        limit=connections, ssl=tls_context(), keepalive_timeout=KEEPALIVE_SECONDS
    )
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)
