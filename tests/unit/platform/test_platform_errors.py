"""Client errors: their names and statuses, and that their text is clean."""

import pickle

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
    ServerError,
    StreamError,
    StreamLimitExceededError,
    ValidationError,
    WebSocketError,
    error_type,
)


@pytest.mark.parametrize(
    ("kind", "status", "parent"),
    [
        (ClientTimeoutError, 408, ClientError),
        (ClientConnectionError, 503, ClientError),
        (AuthenticationError, 401, HTTPError),
        (AuthorizationError, 403, HTTPError),
        (NotFoundError, 404, HTTPError),
        (ValidationError, 400, HTTPError),
        (RateLimitError, 429, HTTPError),
        (ServerError, 500, HTTPError),
        (StreamLimitExceededError, 429, StreamError),
        (WebSocketError, 500, StreamError),
    ],
)
def test_an_error_has_its_status_under_both_names(
    kind: type[ClientError], status: int, parent: type[ClientError]
) -> None:
    error = kind("x")

    assert (error.status_code, error.status) == (status, status)
    assert isinstance(error, parent)
    assert isinstance(error, ClientError)


def test_an_error_without_a_message_says_what_happened() -> None:
    assert str(ClientTimeoutError()) == "The service did not answer in time."


def test_message_and_detail_are_cleaned_and_cut() -> None:
    error = NotFoundError("no http://h/x?token=abc", 404, "Authorization: Token abc " + "x" * 1000)

    assert str(error) == "no <url>"
    assert "abc" not in error.detail
    assert len(error.detail) == 300


def test_users_read_malformed_response_for_a_malformed_answer() -> None:
    assert error_type(MalformedResponseError("x")) == "MalformedResponse"
    assert error_type(ClientTimeoutError("x")) == "ClientTimeoutError"
    assert error_type(TimeoutError("x")) == "TimeoutError"


def test_an_error_survives_the_way_to_another_process() -> None:
    error = pickle.loads(pickle.dumps(RateLimitError("slow", 429, "slow down", retry_after=3.0)))

    assert (str(error), error.status, error.detail, error.retry_after) == ("slow", 429, "slow down", 3.0)
