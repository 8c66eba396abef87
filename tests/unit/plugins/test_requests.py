"""What is sent to a plugin's host."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from pydantic import SecretStr

from shared.messages import DeployMessage, ToTaskMessage
from worker import agents
from worker.platform import ServerError
from worker.plugins import (
    ActionRequest,
    ClientAccess,
)
from worker.plugins.requests import requests_at_once
from worker.services import Services
from worker.settings import Settings

MESSAGES = [
    DeployMessage(job="1", plugin="p@1.0.0", agent=3),
    ToTaskMessage.model_validate(
        {
            "job": "1",
            "plugin": "p@1.0.0",
            "params": {"name": "n", "project": 1, "agent": 3, "target_specification_name": "label"},
        }
    ),
]


def test_request_is_the_same_after_json() -> None:
    access = ClientAccess("http://b", "token", "tenant", "http://a")
    request = ActionRequest("c@1", "to_task", "p.C", {"a": 1}, {"E": "1"}, "42", clients=access)
    assert ActionRequest.from_json(request.to_json()) == request
    assert ActionRequest.from_json(ActionRequest("c@1", "a", "p.C").to_json()).clients is None
    json.loads(request.to_json())


def test_token_is_not_in_the_repr(access: ClientAccess) -> None:
    assert "hush" not in repr(ClientAccess(host="http://b", token="hush"))


class Process:
    """A worker's services, and a backend that knows one agent or fails."""

    def __init__(self, folder: Path, agent: Any, **settings: Any) -> None:
        release = folder / "p@1.0.0"
        release.mkdir()
        actions = "actions: {deployment: {entrypoint: p.A}, to_task: {entrypoint: p.A}}"
        (release / "config.yaml").write_text(f"code: p\nversion: 1.0.0\n{actions}\n")
        given = {"synapse_host": "http://backend", "synapse_access_token": SecretStr("hush-worker")}
        self.services = Services(
            Settings(**given, plugins_dir=folder, **settings), Celery(set_as_current=False)
        )
        self.agent, self.looked_up = agent, 0
        self.services.backend = lambda tenant=None: self  # type: ignore[method-assign, assignment, return-value]

    def get_agent(self, agent: int) -> Any:
        self.looked_up += 1
        if isinstance(self.agent, Exception):
            raise self.agent
        return {"id": agent, **self.agent}

    def access(self, message: Any) -> ClientAccess:
        _, request = self.services.action_of(SimpleNamespace(message=message, job=message.job))  # type: ignore[arg-type]
        assert request.clients is not None
        return request.clients


AGENT = {"url": "http://agent", "token": "hush-agent"}
WITH_TOKEN = {"worker_plugin_access_token": SecretStr("hush-plugin")}


@pytest.mark.parametrize("message", MESSAGES, ids=["deploy", "to_task"])
def test_plugin_code_gets_the_agent_that_the_backend_knows(message: Any, tmp_path: Path) -> None:
    # Given a token for plugin code, and an agent that is looked up by its id
    process = Process(tmp_path, AGENT, **WITH_TOKEN)

    accesses = [process.access(message) for _ in range(5)]

    # Then plugin code has its address with the lesser token, and it is looked up once for many calls
    assert accesses == [ClientAccess("http://backend", "hush-plugin", None, "http://agent")] * 5
    assert process.looked_up == 1


def test_a_limited_number_of_agents_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given messages that name more agents than are kept
    monkeypatch.setattr(agents, "MAX_ADDRESSES", 2)
    process = Process(tmp_path, AGENT, **WITH_TOKEN)
    for agent in (1, 2, 3):
        process.services.agents.url_for_plugins(agent, None)

    # When they are named again, then the one that was looked up first is looked up once more
    for agent in (3, 2, 1):
        assert process.services.agents.url_for_plugins(agent, None) == "http://agent"
    assert process.looked_up == 4


def test_without_a_plugin_token_no_agent_is_looked_up(tmp_path: Path) -> None:
    process = Process(tmp_path, AGENT)

    assert process.access(MESSAGES[0]).agent_url is None
    assert process.looked_up == 0


@pytest.mark.parametrize(
    "agent", [ServerError("500"), {"url": ""}, {"url": "ftp://agent", "token": "t"}, {"url": 7}]
)
def test_an_agent_that_cannot_be_looked_up_costs_no_run(agent: Any, tmp_path: Path) -> None:
    process = Process(tmp_path, agent, **WITH_TOKEN)

    assert process.access(MESSAGES[0]).agent_url is None


def test_the_wait_for_capacity_is_not_the_plugins_matter(tmp_path: Path) -> None:
    # Given a deployment that may wait for capacity
    params = {"wait_for_capacity": 600, "num_cpus": 1}
    message = DeployMessage.model_validate({"job": 1, "plugin": "p@1.0.0", "agent": 1, "params": params})
    process = Process(tmp_path, AGENT)

    # When plugin code is called for it
    run = SimpleNamespace(message=message, job=message.job)
    _, request = process.services.action_of(run)  # type: ignore[arg-type]

    # Then it gets the other parameters alone
    assert request.params == {"num_cpus": 1.0}


def test_what_is_known_of_releases_is_bounded(tmp_path: Path) -> None:
    declared = Process(tmp_path, AGENT).services.declared_params

    for number in range(1_500):
        declared[str(number), "p.A"] = frozenset()

    assert len(declared) == 1_000


def test_each_user_of_a_host_unpacks_releases_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    for user in (1, 2):
        monkeypatch.setattr(os, "getuid", lambda user=user: user)
        (tmp_path / str(user)).mkdir()
        folders.append(Process(tmp_path / str(user), AGENT).services.store._cache_dir)

    assert folders[0] != folders[1]


@pytest.mark.parametrize(
    ("options", "at_once"),
    [
        ({}, 5),
        ({"max_ongoing_requests": 8}, 8),
        ({"batch": {"max_batch_size": 16}}, 32),
        ({"batch": {"max_batch_size": 2}}, 5),
        ({"batch": {"batch_wait_timeout_s": 0.1}, "num_replicas": 2}, 40),
        ({"num_replicas": 3, "max_ongoing_requests": 2}, 6),
        ({"autoscaling_config": {"min_replicas": 1, "max_replicas": 4}}, 20),
        ({"autoscaling_config": {"min_replicas": 1}}, 5),
        ({"num_replicas": "auto"}, 500),
        ({"num_replicas": "auto", "autoscaling_config": {"max_replicas": 4}}, 20),
    ],
)
def test_all_replicas_take_so_many_requests_at_once(options: dict[str, Any], at_once: int) -> None:
    assert requests_at_once(options) == at_once
