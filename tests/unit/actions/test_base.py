"""Whose tokens an action's clients carry: the worker's own in a plain process, the plugin's in a host."""

import dataclasses
from typing import Any

import pytest

from worker.actions import RuntimeContext
from worker.plugins import ActionRequest, ClientAccess

ENVIRON = {
    "SYNAPSE_HOST": "http://backend",
    "SYNAPSE_ACCESS_TOKEN": "worker-token",
    "SYNAPSE_TENANT": "acme",
    "SYNAPSE_AGENT_URL": "http://agent",
    "SYNAPSE_AGENT_TOKEN": "agent-token",
    "WORKER_PLUGIN_ACCESS_TOKEN": "plugin-token",
}


def in_a_plain_process(monkeypatch: pytest.MonkeyPatch, **without: None) -> RuntimeContext:
    for name, value in ENVIRON.items():
        if name in without:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    return RuntimeContext.from_environ()


def sent(client: Any) -> dict[str, str]:
    """The headers by which a client says who calls."""
    names = ("authorization", "synapse-access-token", "synapse-user", "synapse-tenant")
    return {name: client._http.headers[name] for name in names if name in client._http.headers}


def test_in_a_plain_process_the_clients_are_the_workers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = in_a_plain_process(monkeypatch)

    assert sent(ctx.client) == {
        "synapse-access-token": "Token worker-token",
        "synapse-tenant": "Token acme",
    }
    assert sent(ctx.agent_client) == {
        "authorization": "agent-token",
        "synapse-user": "Token worker-token",
        "synapse-tenant": "Token acme",
    }


def test_without_an_agents_token_none_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = in_a_plain_process(monkeypatch, SYNAPSE_AGENT_TOKEN=None)

    assert sent(ctx.agent_client)["authorization"] == ""


def test_an_author_without_the_workers_token_has_the_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = in_a_plain_process(monkeypatch, SYNAPSE_ACCESS_TOKEN=None)

    assert sent(ctx.client)["synapse-access-token"] == "Token plugin-token"


def test_without_a_host_a_token_or_an_agent_there_is_no_such_client(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_a_plain_process(monkeypatch, SYNAPSE_HOST=None).client is None
    neither = in_a_plain_process(monkeypatch, SYNAPSE_ACCESS_TOKEN=None, WORKER_PLUGIN_ACCESS_TOKEN=None)
    assert neither.client is None
    alone = in_a_plain_process(monkeypatch, SYNAPSE_AGENT_URL=None)
    assert alone.client is not None
    assert alone.agent_client is None


def test_in_a_host_the_clients_carry_the_plugins_token_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_plain_process(monkeypatch)
    access = ClientAccess("http://backend", "plugin-token", "acme", "http://agent")
    request = ActionRequest(release="a@1", action="deployment", entrypoint="p.B", clients=access)

    ctx = RuntimeContext.from_request(request)

    assert sent(ctx.client)["synapse-access-token"] == "Token plugin-token"
    assert sent(ctx.agent_client) == {"authorization": "plugin-token", "synapse-tenant": "Token acme"}
    without = dataclasses.replace(request, clients=dataclasses.replace(access, token=None))
    assert RuntimeContext.from_request(without).client is None
