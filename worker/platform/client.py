"""The sync client under `BackendClient` and `AgentClient`: sends a `Request`, returns JSON or raises."""

from collections.abc import Iterator, Mapping
from typing import Any, Self

import httpx
import tenacity

from worker.platform.errors import ClientError
from worker.platform.requests import BaseUrl, Request, Trail, body_of
from worker.platform.responses import Answer, RetryPolicy, value_of
from worker.platform.transport import (
    CLOSED,
    AnswerReader,
    DeadlineTransport,
    Timeouts,
    after_failure,
    checked_headers,
    deadline,
    no_cookies,
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
        self._timeouts = Timeouts.of(timeout)
        self._retries = retries or RetryPolicy()
        self._http = httpx.Client(
            headers=checked_headers(headers),
            timeout=self._timeouts.for_httpx(),
            transport=transport or DeadlineTransport(),
            cookies=no_cookies(),
            trust_env=False,
            follow_redirects=False,
        )

    def pages(self, request: Request) -> Iterator[dict[str, Any]]:
        """The pages of a list, from the first to the last, fetched as they are asked for."""
        trail = Trail(request)
        following: Request | None = request
        while following is not None:
            page: dict[str, Any] = self._send(following)
            yield page
            following = trail.after(page, self._base)

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, request: Request) -> Any:
        content = body_of(request)
        attempts = tenacity.Retrying(**self._retries.arguments(request))
        return attempts(self._attempt, request, content)

    def _object(self, request: Request) -> dict[str, Any]:
        """A call whose answer is an object."""
        answer: dict[str, Any] = self._send(request)
        return answer

    def _all(self, request: Request) -> dict[str, Any]:
        """Every page of a list in one answer."""
        return {"results": [each for page in self.pages(request) for each in page["results"]]}

    def _attempt(self, request: Request, content: bytes | None) -> Any:
        with deadline(self._timeouts.total):
            return value_of(self._exchange(request, content), request.expect)

    def _exchange(self, request: Request, content: bytes | None) -> Answer:
        if self._http.is_closed:
            raise ClientError(CLOSED, 400)
        url = self._base.join(request.path, request.query)
        headers = {"Content-Type": "application/json"} if content is not None else None
        reader: AnswerReader | None = None
        try:
            with self._http.stream(request.method, url, content=content, headers=headers) as response:
                reader = AnswerReader(response.status_code, response.headers)
                for chunk in response.iter_bytes():
                    if not reader.add(chunk):
                        break
                return reader.answer()
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            failure = error
        return after_failure(failure, reader)
