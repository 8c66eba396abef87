"""What agents and workers answer, as the page shows it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import SecretStr

from worker.console import agents_and_workers
from worker.console.agents_and_workers import AgentsAndWorkers, shared_answer
from worker.platform import AgentClient, ClientConnectionError
from worker.settings import Settings


class Agent:
    """An agent with these applications, or one that cannot be reached."""

    def __init__(self, applications: list[Any] | None) -> None:
        self._applications = applications

    def list_serve_applications(self) -> dict[str, Any]:
        if self._applications is None:
            raise ClientConnectionError("no route to http://agent:8000?token=secret")
        return {"results": self._applications}


def deployments(monkeypatch: pytest.MonkeyPatch, *agents: Agent) -> dict[str, Any]:
    numbered = list(enumerate(agents, start=1))
    monkeypatch.setattr(AgentsAndWorkers, "_agents", lambda *_: numbered)
    found: dict[str, Any] = AgentsAndWorkers(cast(Settings, SimpleNamespace())).deployments()
    return found


def test_application_has_its_replicas_route_and_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an application one of whose two replicas runs
    application = {
        "name": "digits@1.0.0",
        "status": "DEPLOYING",
        "route_prefix": "/digits",
        "message": "",
        "deployments": {
            "Model": {
                "target_num_replicas": 2,
                "message": "No node has a GPU",
                "replicas": [{"state": "RUNNING"}, {"state": "STARTING"}],
            }
        },
    }

    found = deployments(monkeypatch, Agent([application]))

    assert found["deployments"] == [
        {
            "agent": 1,
            "name": "digits@1.0.0",
            "status": "DEPLOYING",
            "route": "/digits",
            "running": 1,
            "wanted": 2,
            "message": "No node has a GPU",
        }
    ]
    assert found["problem"] == ""


@pytest.mark.parametrize(
    "application",
    [
        {},
        {"name": 7, "status": None, "deployments": "none", "route_prefix": []},
        {"deployments": {"a": None, "b": {"replicas": None, "target_num_replicas": "two", "message": 3}}},
        {"deployments": {"a": {"replicas": [None, "x", {}]}, "b": {"replicas": 3}}},
    ],
)
def test_malformed_application_is_shown_as_far_as_it_goes(
    monkeypatch: pytest.MonkeyPatch, application: dict[str, Any]
) -> None:
    (found,) = deployments(monkeypatch, Agent([application, "no application"]))["deployments"]

    assert (found["running"], found["wanted"], found["message"]) == (0, 0, "")


def test_agent_that_is_away_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    found = deployments(monkeypatch, Agent(None), Agent([{"name": "upper@1.0.0"}]))

    assert [each["name"] for each in found["deployments"]] == ["upper@1.0.0"]
    assert found["problem"] == "agent 1: ClientConnectionError"


def test_without_a_workers_settings_nobody_is_asked() -> None:
    asked = AgentsAndWorkers(None)

    assert asked.deployments()["problem"] == agents_and_workers.NOT_CONFIGURED
    assert asked.workers()["problem"] == agents_and_workers.NOT_CONFIGURED


def test_answer_is_shared_by_those_who_ask_soon() -> None:
    asked: list[int] = []
    answer = shared_answer(60.0, lambda: asked.append(1) or len(asked))  # type: ignore[func-returns-value]

    assert (answer(), answer(), len(asked)) == (1, 1, 1)


def test_agents_are_asked_by_the_same_client_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a configured agent, and each answer for one question alone
    asked: list[AgentClient] = []

    def applications(client: AgentClient) -> dict[str, Any]:
        asked.append(client)
        return {"results": []}

    monkeypatch.setattr(AgentClient, "list_serve_applications", applications)
    monkeypatch.setattr(agents_and_workers, "SECONDS_KEPT", 0.0)
    settings = Settings(
        synapse_host="http://backend",
        synapse_access_token=SecretStr("worker-token"),
        plugins_dir=Path(),
        synapse_agent_url="http://agent",
        synapse_agent_token=SecretStr("agent-token"),
    )
    overview = AgentsAndWorkers(settings)

    # When they are asked again and again, as a page does that is open
    for _ in range(3):
        assert overview.deployments() == {"deployments": [], "problem": ""}

    # Then no client with connections of its own is left of each time
    assert len(asked) == 3
    assert len({id(client) for client in asked}) == 1
