"""The synchronous client that `BackendClient` and `AgentClient` extend: sends requests, returns JSON."""

import time
from collections.abc import Iterator, Mapping
from typing import ClassVar, Final, Self

import httpx

from shared.messages import JsonObject
from worker import metrics, tracing
from worker.platform.deadlines import DeadlineTransport, deadline
from worker.platform.errors import ClientError, NotFoundError
from worker.platform.requests import BaseUrl, Json, Pagination, Request, encode_body
from worker.platform.responses import HttpResponse, decode_response
from worker.platform.retries import RetryPolicy
from worker.platform.transport import (
    CLIENT_CLOSED,
    ResponseReader,
    Timeouts,
    default_headers,
    recover_response,
    rejecting_cookie_jar,
)

JSON_BODY: Final = {"Content-Type": "application/json"}


class BaseClient:
    """A client of the service at one base URL, over kept connections; threads may share it.

    It ignores the environment's proxies and `.netrc`, follows no redirect and keeps no cookie: the tokens in
    its headers reach the service itself only.
    """

    service: ClassVar[str] = "other"  # as metrics name it

    def __init__(
        self,
        base_url: str,
        timeout: Mapping[str, float] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
        """Connect to nothing yet.

        Args:
            base_url: `http(s)://host[:port][/path]`.
            timeout: Seconds to `connect` (default 5), to `read` the next bytes (15), and of one attempt in
                `total` (by default `connect` plus twice `read`).
            headers: Sent with every request.
            transport: Replaces the network in tests.
            retries: How often a request that may be sent again is sent.

        Raises:
            ValueError: The base URL, a timeout or a header is unusable; the message does not show its value.
        """
        self._base = BaseUrl(base_url)
        self._timeouts = Timeouts.from_argument(timeout)
        self._retries = retries or RetryPolicy()
        self._http = httpx.Client(
            headers=default_headers(headers),
            timeout=self._timeouts.to_httpx(),
            transport=transport or DeadlineTransport(),
            cookies=rejecting_cookie_jar(),
            trust_env=False,
            follow_redirects=False,
        )

    def pages(self, request: Request) -> Iterator[JsonObject]:
        """Fetch a list page by page, each when it is asked for.

        Args:
            request: The first page.

        Yields:
            Pages as `{"count", "next", "previous", "results"}`.

        Raises:
            ClientError: A page cannot be fetched.
            MalformedResponseError: A link leads out of the base URL, or the pages do not end.
        """
        pagination = Pagination(request)
        current: Request | None = request
        while current is not None:
            try:
                page = self._send_for_object(current)
            except NotFoundError:
                if current is request:
                    raise
                return  # What it listed was deleted since the page before, which was the last one then.
            yield page
            current = pagination.next_request(page, self._base)

    def close(self) -> None:
        """Close the connections. Later calls raise `ClientError`."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, request: Request) -> Json:
        content = encode_body(request)
        began, attempt = time.monotonic(), 1
        while True:
            try:
                return self._attempt(request, content)
            except ClientError as error:
                elapsed = time.monotonic() - began
                seconds = self._retries.seconds_until_retry(error, request, attempt, elapsed)
                if seconds is None:
                    raise
            time.sleep(seconds)
            attempt += 1

    def _send_for_object(self, request: Request) -> JsonObject:
        """Send a request whose response is an object or a page."""
        response: JsonObject = self._send(request)
        return response

    def _collect_pages(self, request: Request) -> JsonObject:
        """The results of all pages of a list in one object."""
        return {"results": [each for page in self.pages(request) for each in page["results"]]}

    def _attempt(self, request: Request, content: bytes | None) -> Json:
        with deadline(self._timeouts.total):
            response = self._exchange(request, content)
            return decode_response(response, request.expect, len(content or b""))

    def _exchange(self, request: Request, content: bytes | None) -> HttpResponse:
        if self._http.is_closed:
            raise ClientError(CLIENT_CLOSED, 400)
        url = self._base.join(request.path, request.query)
        reader: ResponseReader | None = None
        began = time.monotonic()
        with tracing.request_span(self.service, request.method, request.path) as span:
            headers = {**span.headers, **(JSON_BODY if content is not None else {})}
            try:
                with self._http.stream(request.method, url, content=content, headers=headers) as response:
                    span.status = response.status_code
                    reader = ResponseReader(response.status_code, response.headers)
                    for chunk in response.iter_bytes():
                        if not reader.feed(chunk):
                            break
                    metrics.observe_request(self.service, request.method, response.status_code, began)
                    return reader.response()
            except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
                failure = error
            metrics.observe_request(self.service, request.method, 0, began)
            return recover_response(failure, reader)
