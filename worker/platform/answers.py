"""Turns what a service answered (status, headers, body) into JSON or into the right error."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from worker.platform.depth import too_deep
from worker.platform.errors import (
    LONGEST_DETAIL,
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
from worker.platform.redaction import clean, mask_cut, redact_value
from worker.platform.requests import Expect
from worker.platform.retries import retry_after_seconds

_ERRORS: dict[int, type[HTTPError]] = {
    400: ValidationError,
    401: AuthenticationError,
    403: AuthorizationError,
    404: NotFoundError,
    422: ValidationError,
    429: RateLimitError,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, unpacked; the names of `headers` are in lower case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


def value_of(answer: Answer, expect: Expect) -> Any:
    """What the caller gets for `answer`, or the error that it stands for."""
    if not 200 <= answer.status < 300:
        raise error_of(answer)
    if expect == "none":
        return None
    if expect == "text":
        return answer.body.decode("utf-8", errors="replace")
    if answer.status == 204 and expect == "any":
        return None
    value = _json(answer.body)
    if expect == "list":
        return as_list(value)
    if expect == "object" and not isinstance(value, dict):
        raise MalformedResponseError("malformed answer: not an object")
    return value


def as_list(value: Any) -> dict[str, Any]:
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


def error_of(answer: Answer) -> ClientError:
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
    retry_after = retry_after_seconds(answer.headers.get("retry-after"))
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


def _detail(answer: Answer) -> str:
    """What the service says about its error, on one line; nothing where it says it in HTML."""
    if _is_html(answer.body):
        return ""
    try:
        value = json.loads(answer.body)
    except (ValueError, RecursionError):
        value = None
    if value is None or too_deep(answer.body, value):
        value = mask_cut(answer.body[:4096].decode("utf-8", errors="replace"))
    value = redact_value(value)
    if isinstance(value, dict) and set(value) == {"detail"}:
        value = value["detail"]
    return shorten(" ".join(clean(_sentence(value)).split()), LONGEST_DETAIL)


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
