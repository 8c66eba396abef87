"""Client errors: their names and statuses, and that their text is clean."""

import pickle
import traceback

import httpx
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
    clean_exception,
    error_type,
    register_secrets,
)
from worker.platform.errors import CleanedError


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


def test_an_error_is_made_of_a_status_and_a_detail() -> None:
    error = ClientError(503, "away")

    assert (str(error), error.status_code, error.detail) == ("503: away", 503, "away")
    assert str(ClientError(503)) == "503"
    assert HTTPError(429, "slow", retry_after=2).retry_after == 2


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


URL = "http://host/x?token=abc123"


def test_the_copy_is_of_the_same_class_with_clean_arguments() -> None:
    error = ValueError(f"bad {URL}", 7, [URL], {"a": URL})

    copy = clean_exception(error)

    assert type(copy) is ValueError
    assert copy.args == ("bad <url>", 7, ["<url>"], "<dict>")
    assert copy is not error


def test_an_os_error_keeps_its_number() -> None:
    copy = clean_exception(ConnectionRefusedError(111, f"rejected {URL}"))

    assert isinstance(copy, ConnectionRefusedError)
    assert copy.errno == 111
    assert str(copy) == "[Errno 111] rejected <url>"


def test_request_and_response_stay_behind() -> None:
    request = httpx.Request("GET", URL, headers={"Authorization": "Token abc123"})
    error = httpx.HTTPStatusError(
        f"404 for {URL}", request=request, response=httpx.Response(404, request=request)
    )

    copy = clean_exception(error)

    assert type(copy) is httpx.HTTPStatusError
    assert vars(copy) == {}
    assert str(copy) == "404 for <url>"


def test_what_cannot_be_copied_is_stood_in_for_by_name() -> None:
    class Picky(Exception):
        def __init__(self, url: str) -> None:
            super().__init__()
            self.url = url

        def __str__(self) -> str:
            return f"picky about {self.url}"

    copy = clean_exception(Picky(URL))

    assert isinstance(copy, CleanedError)
    assert str(copy) == "Picky: picky about <url>"


def test_a_decoding_error_does_not_bring_the_bytes_along() -> None:
    with pytest.raises(UnicodeDecodeError) as caught:
        b"token=abc123\xff".decode()

    copy = clean_exception(caught.value)

    assert "abc123" not in repr(copy)
    assert "abc123" not in repr(copy.args)


def test_the_chain_is_cleaned_and_the_traceback_dropped() -> None:
    try:
        try:
            raise OSError(f"inner {URL}")
        except OSError as inner:
            raise RuntimeError(f"outer {URL}") from inner
    except RuntimeError as outer:
        copy = clean_exception(outer)

    assert str(copy.__cause__) == "inner <url>"
    assert copy.__traceback__ is None
    assert "abc123" not in "".join(traceback.format_exception(copy))


def test_an_implicit_context_is_cleaned_too() -> None:
    try:
        try:
            raise OSError(f"inner {URL}")
        except OSError:
            raise RuntimeError("outer")  # noqa: B904 - the context is what this is about
    except RuntimeError as outer:
        copy = clean_exception(outer)

    assert str(copy.__context__) == "inner <url>"
    assert copy.__cause__ is None


def test_a_suppressed_context_is_left_out() -> None:
    try:
        try:
            raise OSError(f"inner {URL}")
        except OSError:
            raise RuntimeError("outer") from None
    except RuntimeError as outer:
        copy = clean_exception(outer)

    assert copy.__context__ is None


def test_a_client_error_passes_as_it_is_with_a_clean_chain() -> None:
    register_secrets(["known-secret"])
    error = ClientTimeoutError("late")
    error.__cause__ = OSError("known-secret")

    copy = clean_exception(error)

    assert copy is error
    assert str(copy.__cause__) == "***"


def test_a_group_is_cleaned_with_its_members() -> None:
    copy = clean_exception(ExceptionGroup("all", [OSError(URL), ValueError("x")]))

    assert "abc123" not in "".join(traceback.format_exception(copy))


def test_a_chain_in_a_circle_ends() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__context__, two.__context__ = two, one

    assert str(clean_exception(one)) == "one"
