"""When a call is made again and how long after."""

from datetime import UTC, datetime

import pytest
import tenacity

from worker.platform import (
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    HTTPError,
    MalformedResponseError,
    NotFoundError,
    RateLimitError,
    RetryPolicy,
    ServerError,
)
from worker.platform.requests import Request
from worker.platform.responses import is_retryable, parse_retry_after

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

    def fail() -> None:
        raise error

    with pytest.raises(type(error)):
        tenacity.Retrying(**policy.tenacity_options(GET), sleep=slept.append)(fail)
    return slept


def test_three_attempts_with_growing_jitter() -> None:
    slept = waits(ClientConnectionError(), RetryPolicy())

    assert len(slept) == 2
    assert 0 <= slept[0] <= 0.2
    assert 0 <= slept[1] <= 0.4


def test_the_jitter_is_capped() -> None:
    assert max(waits(ClientConnectionError(), RetryPolicy(attempts=12))) <= 2


def test_retry_after_is_honoured_and_capped() -> None:
    assert waits(RateLimitError(retry_after=3), RetryPolicy()) == [3, 3]
    assert waits(ServerError("", 503, retry_after=3600), RetryPolicy()) == [10, 10]


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
