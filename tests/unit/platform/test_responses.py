"""From status, headers and bytes to JSON or the right error."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from worker.platform import (
    AuthenticationError,
    AuthorizationError,
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    HTTPError,
    MalformedResponseError,
    NotFoundError,
    RateLimitError,
    RetryPolicy,
    ServerError,
    ValidationError,
)
from worker.platform.requests import Request
from worker.platform.responses import HttpResponse, decode_response, parse_retry_after
from worker.platform.retries import is_retryable


def answer(value: Any = None, status: int = 200, body: bytes | None = None, **headers: str) -> HttpResponse:
    return HttpResponse(status, headers, json.dumps(value).encode() if body is None else body)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (302, HTTPError),
        (400, ValidationError),
        (401, AuthenticationError),
        (403, AuthorizationError),
        (404, NotFoundError),
        (408, ClientTimeoutError),
        (409, HTTPError),
        (422, ValidationError),
        (429, RateLimitError),
        (500, ServerError),
        (503, ServerError),
        (599, ServerError),
        (999, ServerError),
    ],
)
def test_a_status_is_its_error(status: int, kind: type[ClientError]) -> None:
    with pytest.raises(ClientError) as caught:
        decode_response(answer({"detail": "why"}, status), "object")

    assert type(caught.value) is kind
    assert caught.value.status_code == status


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"detail": "why"}', "404 Not Found: why"),
        (
            b'{"params": ["bad", "worse"], "agent": ["gone"]}',
            "404 Not Found: params: bad, worse; agent: gone",
        ),
        (b'["one", "two"]', "404 Not Found: one, two"),
        (b"plain\n text", "404 Not Found: plain text"),
        (b" <!DOCTYPE html><h1>secret</h1>", "404 Not Found"),
        (b"", "404 Not Found"),
        (b'{"detail": "see http://h/x?y=z for \\u001b[1mmore"}', "404 Not Found: see <url> for more"),
        (b'{"detail": {"token": "abc", "why": "x"}}', "404 Not Found: token: ***; why: x"),
    ],
)
def test_the_message_says_why_without_urls_secrets_and_html(body: bytes, text: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        decode_response(answer(status=404, body=body), "object")

    assert str(caught.value) == text


def test_a_long_detail_is_cut() -> None:
    with pytest.raises(NotFoundError) as caught:
        decode_response(answer({"detail": "x" * 5000}, 404), "object")

    assert len(caught.value.detail) == 300


def test_a_redirect_says_that_it_is_not_followed() -> None:
    with pytest.raises(HTTPError, match="302 Found: the service redirects; redirects are not followed"):
        decode_response(answer(status=302, body=b"", location="http://evil/"), "object")


def test_retry_after_is_kept() -> None:
    with pytest.raises(RateLimitError) as caught:
        decode_response(answer(None, 429, **{"retry-after": "7"}), "object")

    assert caught.value.retry_after == 7


@pytest.mark.parametrize(
    "body",
    [b"", b"  ", b"<html></html>", b'{"a": ', b"[1]", b"null", b"\xff\xfe\xff", b"[" * 100_000, b"9" * 5000],
)
def test_what_is_no_object_is_malformed_and_not_shown(body: bytes) -> None:
    with pytest.raises(MalformedResponseError) as caught:
        decode_response(answer(body=body), "object")

    assert caught.value.__context__ is None


@pytest.mark.parametrize("levels", [101, 500, 950, 5000])
@pytest.mark.parametrize("status", [200, 400, 500])
def test_what_is_nested_without_end_is_an_error_of_the_client(status: int, levels: int) -> None:
    body = b'{"a":' * levels + b"1" + b"}" * levels

    with pytest.raises(ClientError) as caught:
        decode_response(answer(body=body, status=status), "any")

    assert isinstance(caught.value, MalformedResponseError) == (status == 200)


def test_a_bare_array_and_a_page_are_the_same_list() -> None:
    page = {"count": 1, "next": None, "previous": None, "results": [{"id": 1}]}

    assert decode_response(answer([{"id": 1}]), "list") == page
    assert decode_response(answer({"results": [{"id": 1}]}), "list") == page


def test_a_count_that_is_not_said_is_that_of_no_page() -> None:
    page = decode_response(answer({"results": [{"id": 1}], "next": "http://h/?cursor=x"}), "list")

    assert page["count"] is None


def test_what_else_a_page_says_is_kept() -> None:
    page = decode_response(answer({"count": 9, "next": "http://h/?page=2", "results": [], "more": 1}), "list")

    assert (page["count"], page["next"], page["more"]) == (9, "http://h/?page=2", 1)


@pytest.mark.parametrize(
    "value", [{}, {"results": None}, {"results": {}}, [1], ["a"], [None], "x", {"results": [], "next": 5}]
)
def test_what_is_no_list_of_objects_is_malformed(value: Any) -> None:
    with pytest.raises(MalformedResponseError):
        decode_response(answer(value), "list")


def test_any_takes_any_json_and_nothing_for_204() -> None:
    assert decode_response(answer([1, "a", None]), "any") == [1, "a", None]
    assert decode_response(answer(status=204, body=b""), "any") is None


@pytest.mark.parametrize("body", [b"", b"<html></html>"])
def test_any_is_still_json(body: bytes) -> None:
    with pytest.raises(MalformedResponseError):
        decode_response(answer(body=body), "any")


def test_text_is_text_whatever_its_bytes() -> None:
    assert decode_response(answer(body=b"a\xffb"), "text") == "a\ufffdb"


def test_nothing_is_made_of_an_answer_that_nobody_reads() -> None:
    assert decode_response(answer(status=201, body=b"whatever"), "none") is None


GET = Request("GET", "x/", retryable=True)


PUT = Request("PUT", "x/", retryable=True)


POST = Request("POST", "x/")


PASSING: list[ClientError] = [
    ClientConnectionError(),
    ClientTimeoutError(),
    RateLimitError(),
    ServerError("", 502),
    ServerError("", 503),
    ServerError("", 504),
    MalformedResponseError(cut_off=True),
]


LASTING: list[Exception] = [
    NotFoundError(),
    ServerError("", 501),
    HTTPError("", 302),
    MalformedResponseError(),
    ValueError(),
]


@pytest.mark.parametrize("error", PASSING)
def test_what_passes_is_tried_again_where_that_is_harmless(error: ClientError) -> None:
    assert is_retryable(error, GET)
    assert is_retryable(error, PUT)
    assert not is_retryable(error, POST)


@pytest.mark.parametrize("error", LASTING)
def test_what_lasts_is_not_tried_again(error: Exception) -> None:
    assert not is_retryable(error, GET)


def test_only_reading_is_tried_again_after_500() -> None:
    assert is_retryable(ServerError("", 500), GET)
    assert not is_retryable(ServerError("", 500), PUT)


def waits(error: ClientError, policy: RetryPolicy) -> list[float]:
    slept: list[float] = []
    while (seconds := policy.seconds_until_retry(error, GET, len(slept) + 1, 0.0)) is not None:
        slept.append(seconds)
    return slept


def test_three_attempts_with_growing_jitter() -> None:
    slept = waits(ClientConnectionError(), RetryPolicy())

    assert len(slept) == 2
    assert 0 <= slept[0] <= 0.2
    assert 0 <= slept[1] <= 0.4


def test_the_jitter_is_capped() -> None:
    assert max(waits(ClientConnectionError(), RetryPolicy(attempts=12))) <= 2


def test_retry_after_is_honoured() -> None:
    assert waits(RateLimitError(retry_after=3), RetryPolicy()) == [3, 3]


def test_a_longer_retry_after_is_the_callers() -> None:
    assert waits(ServerError("", 503, retry_after=3600), RetryPolicy()) == []


def test_answers_are_not_tried_again_where_the_caller_does_it() -> None:
    assert waits(ServerError("", 503), RetryPolicy(retries_statuses=False)) == []
    assert len(waits(ClientConnectionError(), RetryPolicy(retries_statuses=False))) == 2


def test_no_attempt_begins_after_the_budget() -> None:
    assert waits(RateLimitError(retry_after=3), RetryPolicy(budget=2)) == []


NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("5", 5),
        (" 1.5 ", 1.5),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 60),
        ("Thu, 01 Jan 2026 00:01:00", 60),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0),
        ("soon", None),
        ("-5", None),
        ("nan", None),
        ("9" * 5000, None),
        ("", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds
