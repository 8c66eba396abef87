"""What a service answered as JSON or as the right error, and when a failed call is made again."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import tenacity
from tenacity import RetryCallState
from tenacity.wait import wait_random_exponential

from worker.platform.errors import (
    MAX_DETAIL_CHARS,
    AuthenticationError,
    AuthorizationError,
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    HTTPError,
    MalformedResponseError,
    NotFoundError,
    RateLimitError,
    ServerError,
    ValidationError,
    shorten,
)
from worker.platform.redaction import clean, mask_partial_secret, redact_value
from worker.platform.requests import Expect, Request, too_deep

_TRANSIENT = frozenset({429, 502, 503, 504})
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how soon. Celery steps are short, so this is too; times are in seconds."""

    attempts: int = 3
    base: float = 0.2
    cap: float = 2.0
    max_retry_after: float = 10.0
    budget: float = 30.0
    """No further attempt is begun later than this after the first one."""

    def tenacity_options(self, request: Request) -> dict[str, Any]:
        """The keyword arguments of tenacity's `Retrying` and `AsyncRetrying` for `request`."""
        backoff = wait_random_exponential(multiplier=self.base, max=self.cap)

        def wait(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            if isinstance(error, HTTPError) and error.retry_after is not None:
                return min(error.retry_after, self.max_retry_after)
            return backoff(state)

        return {
            "stop": tenacity.stop_after_attempt(self.attempts if request.retryable else 1)
            | tenacity.stop_before_delay(self.budget),
            "wait": wait,
            "retry": tenacity.retry_if_exception(lambda error: is_retryable(error, request)),
            "reraise": True,
        }


def is_retryable(error: BaseException, request: Request) -> bool:
    """Whether `request` may be sent again after `error`."""
    if not request.retryable:
        return False
    if isinstance(error, ClientConnectionError | ClientTimeoutError):
        return True
    if isinstance(error, MalformedResponseError):
        return error.cut_off
    if not isinstance(error, HTTPError):
        return False
    # A backend that fails with 500 may have written before it failed: only reading is tried again.
    return error.status_code in _TRANSIENT or (error.status_code == 500 and request.method == "GET")


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """The header `Retry-After`, seconds or a date, as seconds from now; None where it says nothing usable."""
    if value is None:
        return None
    value = value.strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())


_ERRORS: dict[int, type[HTTPError]] = {
    400: ValidationError,
    401: AuthenticationError,
    403: AuthorizationError,
    404: NotFoundError,
    422: ValidationError,
    429: RateLimitError,
}


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A whole answer, unpacked; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


def decode_response(answer: HttpResponse, expect: Expect) -> Any:
    """What the caller gets for `answer`, or the error that it stands for."""
    if not 200 <= answer.status < 300:
        raise response_error(answer)
    if expect == "none":
        return None
    if expect == "text":
        return answer.body.decode("utf-8", errors="replace")
    if answer.status == 204 and expect == "any":
        return None
    value = _json(answer.body)
    if expect == "list":
        return parse_page(value)
    if expect == "object" and not isinstance(value, dict):
        raise MalformedResponseError("malformed answer: not an object")
    return value


def parse_page(value: Any) -> dict[str, Any]:
    """A list as `{"count", "next", "previous", "results"}`, also where a bare array came."""
    page = {"results": value} if isinstance(value, list) else value
    if not isinstance(page, dict) or not isinstance(page.get("results"), list):
        raise MalformedResponseError("malformed answer: not a list")
    results = page["results"]
    if not all(isinstance(each, dict) for each in results):
        raise MalformedResponseError("malformed answer: a list of something else than objects")
    if not isinstance(page.get("next"), str | None):
        raise MalformedResponseError("malformed answer: the link to the next page is no text")
    return {"count": len(results), "next": None, "previous": None} | page


def response_error(answer: HttpResponse) -> ClientError:
    """The error for an answer that is not a success."""
    if 300 <= answer.status < 400:
        # Following would hand the tokens to whoever the answer names.
        detail = "the service redirects; redirects are not followed"
    else:
        detail = _detail(answer)
    title = f"{answer.status} {_phrase(answer.status)}".strip()
    message = f"{title}: {detail}" if detail else title
    if answer.status == 408:
        return ClientTimeoutError(message, 408, detail)
    kind = ServerError if answer.status >= 500 else _ERRORS.get(answer.status, HTTPError)
    retry_after = parse_retry_after(answer.headers.get("retry-after"))
    return kind(message, answer.status, detail, retry_after=retry_after)


def _json(body: bytes) -> Any:
    if not body.strip():
        raise MalformedResponseError("malformed answer: empty")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        kind = "HTML" if _is_html(body) else "not JSON"
    else:
        if not too_deep(body, value):
            return value
        kind = "nested too deeply"
    # Outside of the except block: a JSONDecodeError holds the whole answer.
    raise MalformedResponseError(f"malformed answer: {kind}")


def _detail(answer: HttpResponse) -> str:
    """What the service says about its error, on one line; nothing where it says it in HTML."""
    if _is_html(answer.body):
        return ""
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError):
        value = None
    if value is None or too_deep(answer.body, value):
        value = mask_partial_secret(answer.body[:4096].decode("utf-8", errors="replace"))
    value = redact_value(value)
    if isinstance(value, dict) and set(value) == {"detail"}:
        value = value["detail"]
    return shorten(" ".join(clean(_sentence(value)).split()), MAX_DETAIL_CHARS)


def _sentence(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_sentence(messages)}" for name, messages in value.items())
    if isinstance(value, list):
        return ", ".join(_sentence(each) for each in value)
    return value if isinstance(value, str) else json.dumps(value)


def _is_html(body: bytes) -> bool:
    return body[:256].lstrip().startswith(b"<")


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
