"""The sync client under `BackendClient` and `AgentClient`: sends a `Request`, returns JSON or raises."""

from collections.abc import Iterator, Mapping
from typing import Any, Self

import httpx
import tenacity

from worker.platform.errors import ClientError
from worker.platform.requests import BaseUrl, Pagination, Request, encode_body
from worker.platform.responses import HttpResponse, RetryPolicy, decode_response
from worker.platform.transport import (
    CLIENT_CLOSED,
    DeadlineTransport,
    ResponseReader,
    Timeouts,
    deadline,
    default_headers,
    recover_response,
    rejecting_cookie_jar,
)


class BaseClient:
    """Talks to the service at `base_url` over kept connections; threads may share it.

    `timeout` is a dict of `connect` and `read` seconds. Proxies and `.netrc` of the environment do not count,
    redirects are not followed.
    """

    def __init__(
        self,
        base_url: str,
        timeout: Mapping[str, float] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
        retries: RetryPolicy | None = None,
    ) -> None:
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

    def pages(self, request: Request) -> Iterator[dict[str, Any]]:
        """The pages of a list, from the first to the last, fetched as they are asked for."""
        trail = Pagination(request)
        following: Request | None = request
        while following is not None:
            page: dict[str, Any] = self._send(following)
            yield page
            following = trail.next_request(page, self._base)

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, request: Request) -> Any:
        content = encode_body(request)
        attempts = tenacity.Retrying(**self._retries.tenacity_options(request))
        return attempts(self._attempt, request, content)

    def _send_for_object(self, request: Request) -> dict[str, Any]:
        """A call whose answer is an object."""
        answer: dict[str, Any] = self._send(request)
        return answer

    def _collect_pages(self, request: Request) -> dict[str, Any]:
        """Every page of a list in one answer."""
        return {"results": [each for page in self.pages(request) for each in page["results"]]}

    def _attempt(self, request: Request, content: bytes | None) -> Any:
        with deadline(self._timeouts.total):
            return decode_response(self._exchange(request, content), request.expect)

    def _exchange(self, request: Request, content: bytes | None) -> HttpResponse:
        if self._http.is_closed:
            raise ClientError(CLIENT_CLOSED, 400)
        url = self._base.join(request.path, request.query)
        headers = {"Content-Type": "application/json"} if content is not None else None
        reader: ResponseReader | None = None
        try:
            with self._http.stream(request.method, url, content=content, headers=headers) as response:
                reader = ResponseReader(response.status_code, response.headers)
                for chunk in response.iter_bytes():
                    if not reader.feed(chunk):
                        break
                return reader.response()
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            failure = error
        return recover_response(failure, reader)
