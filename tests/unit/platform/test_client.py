"""The sync client on a real wire: connections, deadlines, limits, errors without a trace of URL or token."""

import gzip
import socket
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from worker.platform import (
    BaseClient,
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    HTTPError,
    MalformedResponseError,
    NotFoundError,
    RetryPolicy,
    ServerError,
)
from worker.platform.requests import Request

if TYPE_CHECKING:
    from conftest import Service

GET = Request("GET", "jobs/private-id/", (("q", "private-query"),), retryable=True)
POST = Request("POST", "jobs/", json={"a": 1})
HEADERS = {"Authorization": "Token private-token"}


def client_of(service: "Service | str", policy: RetryPolicy, **timeout: float) -> BaseClient:
    url = service if isinstance(service, str) else service.url
    return BaseClient(url, timeout or None, headers=HEADERS, retries=policy)


def assert_no_trace(error: BaseException) -> None:
    text = "".join(traceback.format_exception(error))
    assert error.__context__ is None
    assert error.__cause__ is None
    for secret in ("private-token", "private-query", "private-id", "127.0.0.1"):
        assert secret not in text
        assert secret not in repr(vars(error))


def failure(
    service: "Service | str", policy: RetryPolicy, request: Request = GET, **timeout: float
) -> ClientError:
    with client_of(service, policy, **timeout) as client, pytest.raises(ClientError) as caught:
        client._send(request)
    assert_no_trace(caught.value)
    return caught.value


def test_connections_are_used_again(service: "Service", hasty: RetryPolicy) -> None:
    service.answers({"id": 1})

    with client_of(service, hasty) as client:
        assert [client._send(GET) for _ in range(5)] == [{"id": 1}] * 5

    assert len({seen.connection for seen in service.seen}) == 1


def test_threads_may_share_a_client(service: "Service", hasty: RetryPolicy) -> None:
    service.answers({"id": 1})

    with client_of(service, hasty) as client, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: client._send(GET), range(50))) == [{"id": 1}] * 50


def test_what_is_sent_is_what_was_asked_for(service: "Service", hasty: RetryPolicy) -> None:
    service.answers({})

    with client_of(service, hasty) as client:
        client._send(Request("POST", "a%40b/", (("x", "ä b"), ("x", "2")), {"ü": [1, None]}))

    (seen,) = service.seen
    assert (seen.method, seen.path) == ("POST", "/a%40b/?x=%C3%A4+b&x=2")
    assert seen.json == {"ü": [1, None]}
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["authorization"] == "Token private-token"


def test_a_call_after_closing_says_so(service: "Service", hasty: RetryPolicy) -> None:
    service.answers({})
    client = client_of(service, hasty)
    client.close()

    with pytest.raises(ClientError, match="the client was closed") as caught:
        client._send(GET)

    assert_no_trace(caught.value)
    assert service.seen == []


def test_cookies_are_not_kept(service: "Service", hasty: RetryPolicy) -> None:
    service.answers({}, headers={"Set-Cookie": "session=1; Path=/"})

    with client_of(service, hasty) as client:
        client._send(GET)
        client._send(GET)

    assert "cookie" not in service.seen[1].headers


def test_proxies_of_the_environment_do_not_count(
    service: "Service", hasty: RetryPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    service.answers({"id": 1})

    with client_of(service, hasty) as client:
        assert client._send(GET) == {"id": 1}


def test_a_call_that_may_be_repeated_outlives_a_passing_failure(
    service: "Service", hasty: RetryPolicy
) -> None:
    service.answers(status=503).writes().answers({"id": 1})

    with client_of(service, hasty) as client:
        assert client._send(GET) == {"id": 1}


def test_it_gives_up_after_three_attempts(service: "Service", hasty: RetryPolicy) -> None:
    service.answers({"detail": "busy"}, status=503, headers={"Retry-After": "0"})

    error = failure(service, hasty)

    assert isinstance(error, ServerError)
    assert str(error) == "503 Service Unavailable: busy"
    assert len(service.seen) == 3


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_call_that_must_not_be_repeated_is_sent_once(
    service: "Service", hasty: RetryPolicy, status: int
) -> None:
    service.answers(status=status)

    assert failure(service, hasty, POST).status == status
    assert len(service.seen) == 1


def test_a_lost_connection_does_not_repeat_a_single_call(service: "Service", hasty: RetryPolicy) -> None:
    service.writes()

    assert isinstance(failure(service, hasty, POST), ClientConnectionError)
    assert len(service.seen) == 1


def test_nobody_there_is_a_connection_error(hasty: RetryPolicy) -> None:
    error = failure("http://127.0.0.1:9", hasty)

    assert isinstance(error, ClientConnectionError)
    assert str(error) == "503 Service Unavailable: nobody listens at the service's address"


def test_an_unknown_host_is_a_connection_error(hasty: RetryPolicy) -> None:
    error = failure("http://host.invalid", hasty)

    assert isinstance(error, ClientConnectionError)
    assert str(error) == "503 Service Unavailable: the service's host name is unknown"


def test_silence_is_a_timeout(service: "Service") -> None:
    service.is_silent()

    error = failure(service, RetryPolicy(attempts=1), read=0.05)

    assert isinstance(error, ClientTimeoutError)
    assert error.status == 408


@pytest.mark.parametrize(
    "start",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", id="body"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX-Drip: ", id="headers"),
        pytest.param(b"HTTP/1.1 404 Not Found\r\nContent-Length: 1000000\r\n\r\n", id="error"),
    ],
)
def test_a_server_that_drips_bytes_does_not_hold_the_caller(service: "Service", start: bytes) -> None:
    service.drips(start, b"x")
    began = time.monotonic()

    error = failure(service, RetryPolicy(attempts=1), read=0.2, total=0.3)

    assert time.monotonic() - began < 2
    assert error.status in {404, 408}


def test_a_server_that_does_not_read_does_not_hold_the_caller() -> None:
    big = Request("POST", "x/", json={"a": "x" * 20_000_000})
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"

        error = failure(url, RetryPolicy(attempts=1), big, read=0.1, total=0.2)

    assert isinstance(error, ClientTimeoutError)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"id": 1', id="length"),
        pytest.param(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"id"', id="chunked"),
    ],
)
def test_an_answer_that_is_cut_off_is_malformed_and_tried_again(
    service: "Service", hasty: RetryPolicy, answer: bytes
) -> None:
    service.writes(answer)

    error = failure(service, hasty)

    assert isinstance(error, MalformedResponseError)
    assert str(error) == "malformed answer: cut off"
    assert len(service.seen) == 3


def test_an_error_whose_body_is_cut_off_keeps_its_status(service: "Service", hasty: RetryPolicy) -> None:
    service.writes(b"HTTP/1.1 404 Not Found\r\nContent-Length: 100\r\n\r\ngone")

    assert str(failure(service, hasty)) == "404 Not Found: gone"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", id="ssh"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", id="not gzip"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip, gzip\r\nContent-Length: 0\r\n\r\n", id="twice"
        ),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>", id="html"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", id="empty"),
    ],
)
def test_what_is_no_answer_is_malformed_and_not_tried_again(
    service: "Service", hasty: RetryPolicy, answer: bytes
) -> None:
    service.writes(answer)

    assert isinstance(failure(service, hasty), MalformedResponseError)
    assert len(service.seen) == 1


def test_a_huge_answer_is_rejected_by_its_declared_length(service: "Service", hasty: RetryPolicy) -> None:
    service.drips(b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n", b"x")
    began = time.monotonic()

    error = failure(service, hasty)

    assert str(error) == "malformed answer: its 100.0 MB are larger than 16 MB (WORKER_MAX_ANSWER_MB)"
    assert time.monotonic() - began < 1


def test_a_huge_answer_of_unknown_length_is_rejected_on_the_way(
    service: "Service", hasty: RetryPolicy
) -> None:
    service.drips(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", b"x" * 4_000_000)

    assert str(failure(service, hasty)) == "malformed answer: larger than 16 MB (WORKER_MAX_ANSWER_MB)"


def test_a_small_answer_that_unpacks_to_a_huge_one_is_rejected(
    service: "Service", hasty: RetryPolicy
) -> None:
    service.answers(body=gzip.compress(b"x" * 100_000_000, 1), headers={"Content-Encoding": "gzip"})

    assert str(failure(service, hasty)) == "malformed answer: larger than 16 MB (WORKER_MAX_ANSWER_MB)"


def test_a_packed_answer_is_unpacked(service: "Service", hasty: RetryPolicy) -> None:
    service.answers(body=gzip.compress(b'{"id": 1}'), headers={"Content-Encoding": "gzip"})

    with client_of(service, hasty) as client:
        assert client._send(GET) == {"id": 1}


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(service: "Service", hasty: RetryPolicy, status: int) -> None:
    service.answers(status=status, headers={"Location": "/elsewhere/"})

    error = failure(service, hasty)

    assert type(error) is HTTPError
    assert "redirects are not followed" in str(error)
    assert len(service.seen) == 1


def test_a_token_that_no_header_can_hold_is_not_shown() -> None:
    with pytest.raises(ValueError) as caught:
        BaseClient("http://host", headers={"Authorization": "private\ntoken"})

    assert "private" not in str(caught.value)


@pytest.mark.parametrize("timeout", [{"connect": 0}, {"read": -1}, {"pool": 1}])
def test_a_timeout_that_is_none_is_rejected(timeout: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="timeout is a dict"):
        BaseClient("http://host", timeout)


def pages_of(answers: dict[str, Any]) -> httpx.MockTransport:
    def answer(request: httpx.Request) -> httpx.Response:
        page = answers.get(request.url.params.get("page", "1"))
        return httpx.Response(404) if page is None else httpx.Response(200, json=page)

    return httpx.MockTransport(answer)


LIST = Request("GET", "tasks/", retryable=True, expect="list")


def test_pages_are_followed_to_the_last() -> None:
    transport = pages_of(
        {
            "1": {"results": [{"id": 1}], "next": "http://host/api/tasks/?page=2"},
            "2": {"results": [{"id": 2}], "next": None},
        }
    )

    with BaseClient("http://host/api", transport=transport) as client:
        assert client._collect_pages(LIST) == {"results": [{"id": 1}, {"id": 2}]}


def test_a_page_that_is_gone_is_the_end_of_the_list() -> None:
    # Given a list whose last page was deleted after its first one was read
    transport = pages_of({"1": {"results": [{"id": 1}], "next": "http://host/tasks/?page=2"}})

    with BaseClient("http://host", transport=transport) as client:
        assert client._collect_pages(LIST) == {"results": [{"id": 1}]}
        with pytest.raises(NotFoundError):
            client._collect_pages(replace(LIST, query=(("page", "2"),)))


def test_a_page_out_of_the_base_is_not_asked_for() -> None:
    transport = pages_of({"1": {"results": [], "next": "http://host/other/?page=2"}})

    with BaseClient("http://host/api", transport=transport) as client, pytest.raises(MalformedResponseError):
        client._collect_pages(LIST)


@pytest.mark.parametrize("last", ["http://host/tasks/?page=2", "http://host/tasks/"])
def test_pages_in_a_circle_are_rejected(last: str) -> None:
    transport = pages_of(
        {
            "1": {"results": [], "next": "http://host/tasks/?page=2"},
            "2": {"results": [], "next": last},
        }
    )

    with (
        BaseClient("http://host", transport=transport) as client,
        pytest.raises(MalformedResponseError, match="circle"),
    ):
        client._collect_pages(LIST)


def test_a_list_without_an_end_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.platform.requests.MAX_PAGES", 5)

    def answer(request: httpx.Request) -> httpx.Response:
        page = int(request.url.params.get("page", "1")) + 1
        return httpx.Response(200, json={"results": [], "next": f"http://host/tasks/?page={page}"})

    with (
        BaseClient("http://host", transport=httpx.MockTransport(answer)) as client,
        pytest.raises(MalformedResponseError, match="more than 5 pages"),
    ):
        client._collect_pages(LIST)
