"""The agent's calls as they go over the wire, the gate's question above all."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from worker.platform import (
    AgentClient,
    MalformedResponseError,
    RetryPolicy,
    ServerError,
    redact,
)

if TYPE_CHECKING:
    from conftest import Service

Call = Callable[[AgentClient], Any]


def client_of(service: "Service", policy: RetryPolicy, **more: Any) -> AgentClient:
    return AgentClient(service.url, "agent-token", retries=policy, **more)


@pytest.mark.parametrize(
    ("call", "method", "path"),
    [
        (lambda c: c.get_cluster_resources(), "GET", "/resources/cluster/?use_cache=true"),
        (lambda c: c.get_cluster_resources(use_cache=False), "GET", "/resources/cluster/?use_cache=false"),
        (lambda c: c.get_policy(), "GET", "/resources/policy/"),
        (lambda c: c.update_policy(max_concurrent_serve_replicas=3), "PATCH", "/resources/policy/"),
        (lambda c: c.gpu_status(), "GET", "/gpu_status/"),
    ],
)
def test_a_call_is_what_the_agent_documents(
    service: "Service", hasty: RetryPolicy, call: Call, method: str, path: str
) -> None:
    service.answers({"status": "x"})

    with client_of(service, hasty) as client:
        assert call(client) == {"status": "x"}

    assert (service.seen[0].method, service.seen[0].path) == (method, path)


def test_a_healthy_agent_returns_nothing(service: "Service", hasty: RetryPolicy) -> None:
    service.answers(status=204)

    with client_of(service, hasty) as client:
        assert client.health() is None


def test_the_caller_is_named_in_the_headers(service: "Service", hasty: RetryPolicy) -> None:
    service.answers({})

    with client_of(service, hasty, user_token="user-token", tenant="acme") as client:
        client.get_policy()

    headers = service.seen[0].headers
    assert headers["authorization"] == "agent-token"
    assert headers["synapse-user"] == "Token user-token"
    assert headers["synapse-tenant"] == "Token acme"
    assert redact("agent-token user-token") == "*** ***"


def test_the_gate_s_question_goes_out_whole(service: "Service", hasty: RetryPolicy) -> None:
    service.answers({"allowed": True})

    with client_of(service, hasty) as client:
        verdict = client.check_feasibility("serve", num_gpus=0.5, metadata={"plugin_code": "a@1", "agent": 3})

    assert verdict == {"allowed": True, "reasons": []}
    assert service.seen[0].path == "/resources/feasibility/"
    assert service.seen[0].json == {
        "kind": "serve",
        "num_cpus": 1.0,
        "num_gpus": 0.5,
        "memory_bytes": None,
        "replicas": 1,
        "metadata": {"plugin_code": "a@1", "agent": 3},
    }


def test_a_no_comes_with_its_reasons(service: "Service", hasty: RetryPolicy) -> None:
    answer = {"allowed": False, "reasons": ["no CPU"], "feasible_replicas": 0}
    service.answers(answer)

    with client_of(service, hasty) as client:
        assert client.check_feasibility("serve") == answer


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"allowed": "true"},
        {"allowed": 1},
        {"allowed": None},
        {"allowed": True, "reasons": "none"},
        [],
        None,
    ],
)
def test_what_is_no_verdict_is_malformed(service: "Service", hasty: RetryPolicy, answer: Any) -> None:
    service.answers(answer)

    with client_of(service, hasty) as client, pytest.raises(MalformedResponseError):
        client.check_feasibility("serve")


def test_reasons_that_are_null_are_none(service: "Service", hasty: RetryPolicy) -> None:
    service.answers({"allowed": False, "reasons": None})

    with client_of(service, hasty) as client:
        assert client.check_feasibility("serve") == {"allowed": False, "reasons": []}


def test_the_gate_asks_once(service: "Service", hasty: RetryPolicy) -> None:
    service.answers(status=503)

    with client_of(service, hasty) as client, pytest.raises(ServerError):
        client.check_feasibility("serve")

    assert len(service.seen) == 1
