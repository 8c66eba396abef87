"""The backend's calls as they go over the wire, and what becomes of the answers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from worker.platform import (
    BackendClient,
    MalformedResponseError,
    NotFoundError,
    RetryPolicy,
    ServerError,
    ValidationError,
    redact,
)

if TYPE_CHECKING:
    from conftest import Service

Call = Callable[[BackendClient], Any]


def client_of(service: "Service", policy: RetryPolicy, **more: Any) -> BackendClient:
    return BackendClient(service.url, "private-token", retries=policy, **more)


@pytest.mark.parametrize(
    ("call", "method", "path", "body"),
    [
        (lambda c: c.get_project(1), "GET", "/projects/1/", None),
        (lambda c: c.get_data_collection("2"), "GET", "/data_collections/2/", None),
        (lambda c: c.get_task(3), "GET", "/tasks/3/?fields=id%2Cdata%2Cdata_unit&expand=data_unit", None),
        (lambda c: c.get_data_unit(4), "GET", "/data_units/4/?expand=files", None),
        (
            lambda c: c.annotate_task_data(5, {"a": 1}),
            "PUT",
            "/tasks/5/annotate_task_data/",
            {"action": "submit", "data": {"a": 1}},
        ),
        (lambda c: c.get_plugin_release("a@1.0"), "GET", "/plugin_releases/a%401.0/", None),
        (lambda c: c.get_plugin_release("a@1.0+x"), "GET", "/plugin_releases/a%401.0%2Bx/", None),
        (lambda c: c.get_plugin_release(6), "GET", "/plugin_releases/6/", None),
        (lambda c: c.get_model(7), "GET", "/models/7/", None),
        (
            lambda c: c.run_plugin("a", {"agent": 1, "action": "deployment", "params": {}}),
            "POST",
            "/plugins/a/run/",
            {"agent": 1, "action": "deployment", "params": {}},
        ),
        (lambda c: c.create_serve_application(job=7), "POST", "/serve_applications/", {"job": 7}),
        (
            lambda c: c.create_serve_application(job="j", status="RUNNING", data={}),
            "POST",
            "/serve_applications/",
            {"job": "j", "status": "RUNNING", "data": {}},
        ),
        (lambda c: c.get_job("a.b-c_1"), "GET", "/jobs/a.b-c_1/", None),
        (
            lambda c: c.update_job(8, status="FAILED", result=None),
            "PATCH",
            "/jobs/8/",
            {"status": "FAILED", "result": None},
        ),
    ],
)
def test_a_call_is_what_the_platform_documents(
    service: "Service", hasty: RetryPolicy, call: Call, method: str, path: str, body: Any
) -> None:
    service.answers({"id": 1})

    with client_of(service, hasty) as client:
        assert call(client) == {"id": 1}

    (seen,) = service.seen
    assert (seen.method, seen.path) == (method, path)
    assert (seen.json if seen.body else None) == body


def test_the_caller_is_named_in_the_headers(service: "Service", hasty: RetryPolicy) -> None:
    service.answers({})

    with client_of(service, hasty, tenant="acme", agent_token="agent-token") as client:
        client.get_job(1)

    headers = service.seen[0].headers
    assert headers["synapse-access-token"] == "Token private-token"
    assert headers["synapse-tenant"] == "Token acme"
    assert headers["synapse-agent"] == "Token agent-token"


def test_who_is_not_named_has_no_header(service: "Service", hasty: RetryPolicy) -> None:
    service.answers({})

    with client_of(service, hasty) as client:
        client.get_job(1)

    assert not {"synapse-tenant", "synapse-agent"} & set(service.seen[0].headers)


def test_the_tokens_of_a_client_are_masked_from_then_on() -> None:
    with BackendClient("http://host", "first-token", agent_token="second-token"):
        assert redact("first-token second-token") == "*** ***"


def test_tasks_come_page_by_page(service: "Service", hasty: RetryPolicy) -> None:
    following = f"{service.url}/sdk/tasks/?fields=id&project=3&page_size=2&status=new&page=2"
    service.answers({"count": 3, "next": following, "previous": None, "results": [{"id": 1}, {"id": 2}]})
    service.answers({"count": 3, "next": None, "previous": "x", "results": [{"id": 3}]})

    with client_of(service, hasty) as client:
        first = client.list_tasks({"status": ["new", "old"], "mine": True, "page": 9}, 3, 2)
        second = client.list_tasks({"status": "new"}, 3, 2, url=first["next"])

    assert [each["id"] for each in first["results"] + second["results"]] == [1, 2, 3]
    assert (
        service.seen[0].path == "/sdk/tasks/?status=new&status=old&mine=true&fields=id&project=3&page_size=2"
    )
    assert service.seen[1].path == "/sdk/tasks/?fields=id&project=3&page_size=2&status=new&page=2"


def test_a_next_page_elsewhere_is_asked_of_the_own_service(service: "Service", hasty: RetryPolicy) -> None:
    service.answers({"results": []})

    with client_of(service, hasty) as client:
        client.list_tasks({}, 3, 2, url="http://localhost:1/sdk/tasks/?page=2")

    assert [request.path for request in service.seen] == ["/sdk/tasks/?page=2"]


def test_the_applications_of_all_pages_are_one_list(service: "Service", hasty: RetryPolicy) -> None:
    service.answers({"next": f"{service.url}/serve_applications/?page=2", "results": [{"id": 1}]})
    service.answers({"next": None, "results": [{"id": 2}]})

    with client_of(service, hasty) as client:
        applications = client.list_serve_applications(plugin_code="a", job__agent=3)

    assert applications == {"results": [{"id": 1}, {"id": 2}]}
    assert service.seen[0].path == "/serve_applications/?plugin_code=a&job__agent=3"


def test_an_agent_is_picked_by_its_id(service: "Service", hasty: RetryPolicy) -> None:
    service.answers([{"id": 1, "token": None}, {"id": 2, "token": "agent-secret"}])

    with client_of(service, hasty) as client:
        assert client.get_agent(2)["token"] == "agent-secret"

    assert service.seen[0].path == "/agents/?id=2"
    assert redact("agent-secret") == "***"


def test_an_agent_that_is_not_there_is_not_found(service: "Service", hasty: RetryPolicy) -> None:
    service.answers([{"id": 1}])

    with client_of(service, hasty) as client, pytest.raises(NotFoundError):
        client.get_agent(2)


def test_a_deployment_without_a_job_object_is_malformed(service: "Service", hasty: RetryPolicy) -> None:
    service.answers([])

    with client_of(service, hasty) as client, pytest.raises(MalformedResponseError):
        client.run_plugin("a", {"action": "deployment"})


@pytest.mark.parametrize("entries", [{"event": "message"}, [{"event": "message"}, {"event": "message"}]])
def test_logs_are_written_one_or_many(service: "Service", hasty: RetryPolicy, entries: Any) -> None:
    service.answers(body=b"", status=201)

    with client_of(service, hasty) as client:
        client.create_logs(entries)

    assert service.seen[0].json == entries


def test_filters_cannot_override_what_the_worker_sets(service: "Service", hasty: RetryPolicy) -> None:
    service.answers([])
    filters = {"fields": "data", "project": 9, "page_size": 1, "page": 7, "status": "new"}

    with client_of(service, hasty) as client:
        client.list_tasks(filters, 3, 500)

    assert service.seen[0].path == "/sdk/tasks/?status=new&fields=id&project=3&page_size=500"


def test_a_field_that_the_backend_would_reject_is_not_sent(service: "Service", hasty: RetryPolicy) -> None:
    with client_of(service, hasty) as client, pytest.raises(ValidationError, match="unknown keys progress"):
        client.update_job(1, progress={})

    assert service.seen == []


@pytest.mark.parametrize(
    ("call", "is_retried"),
    [
        (lambda c: c.get_project(1), True),
        (lambda c: c.update_job(1, status="RUNNING"), True),
        (lambda c: c.create_serve_application(job=1), False),
        (lambda c: c.create_logs([]), False),
    ],
)
def test_only_what_is_harmless_twice_is_retried(
    service: "Service", hasty: RetryPolicy, call: Call, is_retried: bool
) -> None:
    service.answers(status=503)

    with client_of(service, hasty) as client, pytest.raises(ServerError):
        call(client)

    assert (len(service.seen) > 1) is is_retried
