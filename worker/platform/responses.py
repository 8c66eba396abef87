"""Responses as JSON values or as client errors."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from shared.messages import JsonObject
from worker.platform.errors import (
    MAX_DETAIL_CHARS,
    AuthenticationError,
    AuthorizationError,
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
from worker.platform.requests import Expect, Json, too_deep

_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")


def parse_retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Parse the header `Retry-After`.

    Args:
        value: Seconds or an HTTP date; None if the header is absent.
        now: The current time, for tests.

    Returns:
        Seconds from now, not negative; None if the header is absent or unusable.
    """
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
    """A whole response.

    Attributes:
        status: The HTTP status.
        headers: Their names are in lower case.
        body: Decompressed.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


def decode_response(response: HttpResponse, expect: Expect, sent_bytes: int = 0) -> Json:
    """Make the caller's value of a response.

    Args:
        response: The whole response.
        expect: What the request expects.
        sent_bytes: Size of the request's body.

    Returns:
        A JSON value; None for "none" and, with "any", for 204; a string for "text". A list is a page as
        `parse_page` makes it.

    Raises:
        ClientError: The status is no success; see `response_error`.
        MalformedResponseError: The body is not what the request expects.
    """
    if not 200 <= response.status < 300:
        raise response_error(response, sent_bytes)
    if expect == "none":
        return None
    if expect == "text":
        return response.body.decode("utf-8", errors="replace")
    if response.status == 204 and expect == "any":
        return None
    value = _parse_json(response.body)
    if expect == "list":
        return parse_page(value)
    if expect == "object" and not isinstance(value, dict):
        raise MalformedResponseError("malformed answer: not an object")
    return value


def parse_page(value: Json) -> JsonObject:
    """Bring a list into one shape; platform-api allows bare arrays and pages.

    Args:
        value: The response's JSON.

    Returns:
        `{"count", "next", "previous", "results"}`, and what else the page holds. The count is None where the
        service does not say it and more pages follow.

    Raises:
        MalformedResponseError: It is no list of objects.
    """
    page = {"results": value} if isinstance(value, list) else value
    if not isinstance(page, dict) or not isinstance(page.get("results"), list):
        raise MalformedResponseError("malformed answer: not a list")
    results = page["results"]
    if not all(isinstance(each, dict) for each in results):
        raise MalformedResponseError("malformed answer: a list of something else than objects")
    if not isinstance(page.get("next"), str | None):
        raise MalformedResponseError("malformed answer: the link to the next page is no text")
    return {"count": None if page.get("next") else len(results), "next": None, "previous": None} | page


def response_error(response: HttpResponse, sent_bytes: int = 0) -> ClientError:
    """Make the error for a response that is no success.

    Args:
        response: One whose status is not 2xx.
        sent_bytes: Size of the request's body, which is named where the service finds it too large.

    Returns:
        The error, not raised, with the service's reason as its `detail`.
    """
    if 300 <= response.status < 400:
        # A redirect would send the tokens to whichever server the response names.
        detail = "the service redirects; redirects are not followed"
    else:
        detail = _detail(response)
    title = f"{response.status} {_phrase(response.status)}".strip()
    if response.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and sent_bytes:
        title = f"{title} (the request has {sent_bytes / 1024 / 1024:.2f} MB)"
    message = f"{title}: {detail}" if detail else title
    if response.status == 408:
        return ClientTimeoutError(message, 408, detail)
    kind = ServerError if response.status >= 500 else _ERRORS.get(response.status, HTTPError)
    retry_after = parse_retry_after(response.headers.get("retry-after"))
    return kind(message, response.status, detail, retry_after=retry_after)


def _parse_json(body: bytes) -> Json:
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
    # Raised outside of the except block: as its context, a JSONDecodeError would keep the whole body alive.
    raise MalformedResponseError(f"malformed answer: {kind}")


def _detail(response: HttpResponse) -> str:
    """The service's reason for its error on one line; empty if it is HTML."""
    if _is_html(response.body):
        return ""
    try:
        value = json.loads(response.body)
    except (ValueError, RecursionError):
        value = None
    if value is None or too_deep(response.body, value):
        value = mask_partial_secret(response.body[:4096].decode("utf-8", errors="replace"))
    value = redact_value(value)
    if isinstance(value, dict) and set(value) == {"detail"}:
        value = value["detail"]
    return shorten(" ".join(clean(_sentence(value)).split()), MAX_DETAIL_CHARS)


def _sentence(value: Json) -> str:
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
