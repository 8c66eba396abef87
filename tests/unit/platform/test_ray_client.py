"""Ray's calls as the agent gets them, and what the mixin needs of a client."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from worker.platform import (
    AgentClient,
    BaseClient,
    ClientError,
    RayClientMixin,
    RetryPolicy,
    ServerError,
    ValidationError,
)

if TYPE_CHECKING:
    from conftest import Service


import httpx

from tests.unit.platform.stream_server import LogServer, log_server

Call = Callable[[AgentClient], Any]
TOKEN = "private-agent-token"


def client_of(service: "Service | LogServer", policy: RetryPolicy, **more: Any) -> AgentClient:
    return AgentClient(service.url, TOKEN, retries=policy, **more)


def never_answer(request: httpx.Request) -> httpx.Response:
    raise AssertionError(request)


@pytest.mark.parametrize(
    ("call", "method", "path"),
    [
        (lambda c: c.get_job("a-1_B"), "GET", "/jobs/a-1_B/"),
        (lambda c: c.stop_job("a"), "POST", "/jobs/a/stop/"),
        (lambda c: c.get_node("n"), "GET", "/nodes/n/"),
        (lambda c: c.get_task("t"), "GET", "/tasks/t/"),
        (lambda c: c.get_serve_application("code@1.0"), "GET", "/serve_applications/code%401.0/"),
    ],
)
def test_a_call_is_what_the_agent_documents(
    service: "Service", hasty: RetryPolicy, call: Call, method: str, path: str
) -> None:
    service.answers({"status": "x"})

    with client_of(service, hasty) as client:
        assert call(client) == {"status": "x"}

    assert (service.seen[0].method, service.seen[0].path) == (method, path)


def test_deleting_an_application_returns_nothing(service: "Service", hasty: RetryPolicy) -> None:
    service.answers(status=204)

    with client_of(service, hasty) as client:
        assert client.delete_serve_application("a@1") is None


@pytest.mark.parametrize(
    "bad", ["", ".", "..", "a/b", "a b", "ä", "a?b", "a\n", "x" * 101, "a@b", 5.0, True, None]
)
def test_an_id_that_cannot_be_one_is_rejected(bad: Any) -> None:
    transport = httpx.MockTransport(never_answer)
    with (
        AgentClient("http://host", TOKEN, transport=transport) as client,
        pytest.raises(ValidationError) as caught,
    ):
        client.get_job(bad)

    assert caught.value.status == 400


@pytest.mark.parametrize("bad", ["", ".", "..", "...", "a/b", "a%2fb", "x" * 101])
def test_a_bad_application_name_is_rejected(bad: str) -> None:
    transport = httpx.MockTransport(never_answer)
    with AgentClient("http://host", TOKEN, transport=transport) as client, pytest.raises(ValidationError):
        client.get_serve_application(bad)


@pytest.mark.parametrize(
    ("call", "is_retried"),
    [
        (lambda c: c.stop_job("a"), False),
        (lambda c: c.delete_serve_application("a"), False),
        (lambda c: c.list_jobs(), True),
    ],
)
def test_only_reads_are_retried(service: "Service", hasty: RetryPolicy, call: Call, is_retried: bool) -> None:
    service.answers(status=503)

    with client_of(service, hasty) as client, pytest.raises(ServerError):
        call(client)

    assert (len(service.seen) > 1) is is_retried


@pytest.mark.parametrize(
    "answer", [[{"id": 1}], {"results": [{"id": 1}]}, {"count": 1, "next": None, "results": [{"id": 1}]}]
)
@pytest.mark.parametrize(
    ("call", "path"),
    [
        (lambda c: c.list_jobs(), "/jobs/"),
        (lambda c: c.list_nodes(), "/nodes/"),
        (lambda c: c.list_tasks(), "/tasks/"),
        (lambda c: c.list_serve_applications(), "/serve_applications/"),
    ],
)
def test_a_list_is_the_same_in_either_shape(
    service: "Service", hasty: RetryPolicy, call: Call, path: str, answer: Any
) -> None:
    service.answers(answer)

    with client_of(service, hasty) as client:
        assert call(client) == {"results": [{"id": 1}]}

    assert service.seen[0].path == path


def test_the_log_so_far_is_text(service: "Service", hasty: RetryPolicy) -> None:
    service.answers(body="línea\n<b>2</b>\n".encode())

    with client_of(service, hasty) as client:
        assert client.list_job_logs("a") == "línea\n<b>2</b>\n"


@pytest.mark.parametrize("bad", ["a/b", "..", "", "a" * 101, "a?b"])
def test_an_id_that_cannot_be_one_is_not_sent(service: "Service", hasty: RetryPolicy, bad: str) -> None:
    with client_of(service, hasty) as client, pytest.raises(ValidationError):
        client.stop_job(bad)

    assert service.seen == []


class Mixed(RayClientMixin, BaseClient):
    pass


class Alone(RayClientMixin):
    def __init__(self, base_url: str, timeout: dict[str, float] | None = None) -> None:
        super().__init__(base_url, timeout)


@pytest.mark.parametrize("RayClient", [Mixed, Alone])
def test_the_mixin_works_as_the_document_shows(service: "Service", RayClient: type[Mixed | Alone]) -> None:

    service.answers([{"id": "job-12345", "status": "RUNNING"}]).answers(
        {"detail": "already ended"}, status=400
    )

    with RayClient(service.url, {"connect": 1, "read": 1}) as client:
        assert client.list_jobs()["results"][0]["status"] == "RUNNING"
        with pytest.raises(ClientError) as caught:
            client.stop_job("job-12345")

    assert caught.value.status == 400


def test_each_protocol_has_its_address_and_the_headers(hasty: RetryPolicy) -> None:
    with log_server(lambda wire: wire.accept().complete()) as server:
        client = client_of(server, hasty, user_token="user-token", tenant="acme")
        with client:
            list(client.stream_tail_job_logs("job-1"))
            list(client.websocket_tail_job_logs("job-1"))

    assert server.paths == ["/jobs/job-1/logs/stream/", "/jobs/job-1/logs/"]
    for headers in server.headers:
        assert headers["authorization"] == TOKEN
        assert headers["synapse-user"] == "Token user-token"
        assert headers["synapse-tenant"] == "Token acme"
        assert headers["user-agent"] == "synapse-worker"
    assert "sec-websocket-extensions" not in server.headers[1]


@pytest.mark.parametrize(
    "ask",
    [
        lambda c: c.tail_job_logs("a/b"),
        lambda c: c.tail_job_logs(".."),
        lambda c: c.tail_job_logs(None),
        lambda c: c.tail_job_logs("a", 0),
        lambda c: c.tail_job_logs("a", "10"),
        lambda c: c.tail_job_logs("a", protocol="http"),
        lambda c: c.tail_job_logs("a", 10, None),
        lambda c: c.websocket_tail_job_logs("a b"),
        lambda c: c.stream_tail_job_logs("a", float("nan")),
        lambda c: c.log_tail("a", -1),
    ],
)
def test_what_cannot_be_asked_is_rejected_at_once(ask: Call, hasty: RetryPolicy) -> None:
    with (
        log_server(lambda wire: wire.accept().complete()) as server,
        client_of(server, hasty) as client,
        pytest.raises(ValidationError) as caught,
    ):
        ask(client)

    assert caught.value.status == 400
    assert server.paths == []


def test_the_mixin_gives_its_streams_to_any_base_client() -> None:
    class RayClient(RayClientMixin, BaseClient):
        def __init__(self, base_url: str, timeout: dict[str, float] | None = None) -> None:
            super().__init__(base_url, timeout)

    with (
        log_server(lambda wire: wire.accept().line("a").complete()) as server,
        RayClient(base_url=server.url) as client,
    ):
        assert [line.strip() for line in client.tail_job_logs("job-12345")] == ["a"]


@pytest.mark.parametrize(
    ("answer", "found"),
    [({"stopped": True}, {"stopped": True, "status": "STOPPING"}), ({"status": "x"}, {"status": "x"})],
)
def test_a_stop_says_that_the_job_is_stopping(service: "Service", answer: object, found: object) -> None:
    service.answers(answer)

    with AgentClient(service.url, TOKEN) as client:
        assert client.stop_job("job-1") == found


def test_a_job_that_has_ended_cannot_be_stopped(service: "Service") -> None:
    service.answers({"stopped": False})

    with AgentClient(service.url, TOKEN) as client, pytest.raises(ValidationError) as caught:
        client.stop_job("job-1")

    assert caught.value.status_code == 400
