"""Which token an action's clients send: the worker's in a plain process, the plugin's in a host."""

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


def plain_process_context(monkeypatch: pytest.MonkeyPatch, **without: None) -> RuntimeContext:
    for name, value in ENVIRON.items():
        if name in without:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    return RuntimeContext.from_environ()


def sent_headers(client: Any) -> dict[str, str]:
    """The headers that identify the caller."""
    names = ("authorization", "synapse-access-token", "synapse-user", "synapse-tenant")
    return {name: client._http.headers[name] for name in names if name in client._http.headers}


def test_plain_process_uses_the_workers_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = plain_process_context(monkeypatch)

    assert sent_headers(ctx.client) == {
        "synapse-access-token": "Token worker-token",
        "synapse-tenant": "Token acme",
    }
    assert sent_headers(ctx.agent_client) == {
        "authorization": "agent-token",
        "synapse-user": "Token worker-token",
        "synapse-tenant": "Token acme",
    }


def test_missing_agent_token_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = plain_process_context(monkeypatch, SYNAPSE_AGENT_TOKEN=None)

    assert sent_headers(ctx.agent_client)["authorization"] == ""


def test_plugin_token_replaces_a_missing_worker_token(monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = plain_process_context(monkeypatch, SYNAPSE_ACCESS_TOKEN=None)

    assert sent_headers(ctx.client)["synapse-access-token"] == "Token plugin-token"


def test_client_without_host_token_or_agent_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain_process_context(monkeypatch, SYNAPSE_HOST=None).client is None
    neither = plain_process_context(monkeypatch, SYNAPSE_ACCESS_TOKEN=None, WORKER_PLUGIN_ACCESS_TOKEN=None)
    assert neither.client is None
    alone = plain_process_context(monkeypatch, SYNAPSE_AGENT_URL=None)
    assert alone.client is not None
    assert alone.agent_client is None


def test_host_gives_clients_only_the_plugins_token(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_process_context(monkeypatch)
    access = ClientAccess("http://backend", "plugin-token", "acme", "http://agent")
    request = ActionRequest(release="a@1", action="deployment", entrypoint="p.B", clients=access)

    ctx = RuntimeContext.from_request(request)

    assert sent_headers(ctx.client)["synapse-access-token"] == "Token plugin-token"
    assert sent_headers(ctx.agent_client) == {"authorization": "plugin-token", "synapse-tenant": "Token acme"}
    without = dataclasses.replace(request, clients=dataclasses.replace(access, token=None))
    assert RuntimeContext.from_request(without).client is None
