"""The capacity gate as a step."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakeredis import FakeRedis

from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.deploy.deploy_harness import PLAN, DeployHarness
from worker.deploy import gate
from worker.deploy.gate import capacity_gate
from worker.deploy.plan import CAPACITY_GATE, SERVE_RUN
from worker.platform import ClientConnectionError, ClientTimeoutError, MalformedResponseError, ServerError
from worker.plugins import PluginCallError, PluginHostUnavailableError
from worker.runs.model import Continue, Outcome
from worker.whole_run.run import SUBMIT


def pass_gate(harness: DeployHarness) -> Outcome:
    return harness.step(CAPACITY_GATE, lambda run: capacity_gate(run, harness.services))


def error_of(harness: DeployHarness) -> str:
    end = harness.run().end
    assert end is not None
    return end.error


def test_an_allowed_deployment_goes_on_to_the_submission(harness: DeployHarness) -> None:
    assert pass_gate(harness) == Continue(SERVE_RUN)
    assert harness.run().state.plan == PLAN
    assert harness.agent.asked == [
        {
            "kind": "serve",
            "num_cpus": 2.0,
            "num_gpus": 0.0,
            "memory_bytes": None,
            "replicas": 3,
            "metadata": {"plugin_code": "digits@1.0.0", "agent": 1},
        }
    ]


def test_a_denied_deployment_ends_the_run_and_touches_nothing(harness: DeployHarness) -> None:
    harness.agent.answer = {"allowed": False, "reasons": ["cpu", "gpu"]}
    with pytest.raises(RuntimeError):
        pass_gate(harness)
    assert error_of(harness) == "Serve deploy denied: insufficient cluster capacity (['cpu', 'gpu'])"
    assert harness.host.calls == ["plan"]


CLUSTER = {
    "cpu": {"total": 8.0, "used": 7.0, "available": 1.0},
    "gpu": {"total_gpus": 2, "available_gpus": 0, "max_utilization": 100},
    "memory": {"total": 16 * 1024**3, "available": 3.5 * 1024**3},
}


@pytest.mark.parametrize(
    ("options", "cluster", "text"),
    [
        (
            {"num_cpus": 2, "num_gpus": 1},
            CLUSTER,
            "3 × (2 CPU, 1 GPU). Free on the cluster: 1 / 8 CPU, 0 / 2 GPU.",
        ),
        ({"memory": 4 * 1024**3}, CLUSTER, "3 × (1 CPU, 4 GB). Free on the cluster: 1 / 8 CPU, 3.5 / 16 GB."),
        ({"num_cpus": 0, "num_gpus": 0.5}, {"cpu": 7, "gpu": []}, "3 × (0.5 GPU)."),
        ({"num_cpus": 2}, {"cpu": {"total": "8", "available": float("nan")}}, "3 × (2 CPU)."),
        ({"num_cpus": 2}, ClientTimeoutError(), "3 × (2 CPU)."),
    ],
)
def test_a_denial_says_what_was_wanted_and_what_is_free(
    harness: DeployHarness, options: dict[str, float], cluster: object, text: str
) -> None:
    # Given an agent that denies a deployment, and says more or less of its cluster
    harness.host.plan = {**PLAN.to_json(), "ray_actor_options": options}
    harness.agent.answer = {"allowed": False, "reasons": ["cpu"]}
    if isinstance(cluster, Exception):
        harness.agent.faults.fail("get_cluster_resources", cluster)
    harness.agent.resources = cluster

    with pytest.raises(RuntimeError):
        pass_gate(harness)

    # Then the user reads it, beside the error of the contract
    assert f"Wanted: {text}" in [
        json.loads(line)["data"]["content"] for line in harness.messages().splitlines()
    ]
    assert error_of(harness) == "Serve deploy denied: insufficient cluster capacity (['cpu'])"


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ClientTimeoutError(), "ClientTimeoutError"),
        (ClientConnectionError(), "ClientConnectionError"),
        (ServerError(), "ServerError"),
        (TimeoutError(), "TimeoutError"),
        (ConnectionError(), "ConnectionError"),
        (OSError(), "OSError"),
        (MalformedResponseError(), "MalformedResponse"),
    ],
)
def test_an_agent_that_cannot_be_asked_ends_the_run(
    harness: DeployHarness, error: Exception, name: str
) -> None:
    harness.agent.faults.fail("check_feasibility", error)
    with pytest.raises(RuntimeError) as failure:
        pass_gate(harness)
    assert str(failure.value) == f"Serve deploy capacity check failed: agent unreachable ({name})"
    assert type(failure.value.__cause__) is type(error)
    assert error_of(harness) == str(failure.value)
    assert len(harness.agent.asked) == 1


def test_an_agent_that_cannot_be_looked_up_ends_the_run(harness: DeployHarness) -> None:
    harness.services.agent_client = ServerError()
    with pytest.raises(RuntimeError) as failure:
        pass_gate(harness)
    assert str(failure.value) == "Serve deploy capacity check failed: agent unreachable (ServerError)"
    assert isinstance(failure.value.__cause__, ServerError)


def test_without_an_agent_the_gate_is_skipped_with_a_warning(
    harness: DeployHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.services.agent_client = None
    said: list[str] = []
    monkeypatch.setattr(gate, "log", SimpleNamespace(warning=said.append))
    assert pass_gate(harness) == Continue(SERVE_RUN)
    assert said == ["serve capacity gate skipped: agent_client not provided"]


def test_without_a_cluster_the_run_ends_with_what_to_set(
    redis: FakeRedis, sender: RecordingPublisher, tmp_path: Path
) -> None:
    harness = DeployHarness(redis, sender, tmp_path, ray_address=None)
    harness.accept()
    with pytest.raises(RuntimeError, match="RAY_ADDRESS"):
        pass_gate(harness)
    assert harness.host.calls == []


def test_a_second_delivery_does_not_ask_the_agent_again(harness: DeployHarness) -> None:
    pass_gate(harness)
    assert pass_gate(harness) == Continue(SERVE_RUN)
    assert len(harness.agent.asked) == 1


def test_what_the_plugin_raises_ends_the_run(harness: DeployHarness) -> None:
    harness.host.faults.fail(
        "plan", PluginCallError("ValueError", "no weights", "plugin/deployment.py:3 in plan")
    )
    with pytest.raises(RuntimeError, match=r"Plugin digits@1\.0\.0 failed to plan: ValueError: no weights"):
        pass_gate(harness)
    assert "plugin/deployment.py:3" in harness.messages()


def test_an_unavailable_plugin_host_does_not_end_the_run(harness: DeployHarness) -> None:
    harness.host.faults.fail("plan", PluginHostUnavailableError("away"))
    with pytest.raises(PluginHostUnavailableError):
        pass_gate(harness)
    assert harness.run().end is None


def test_an_action_that_runs_whole_passes_the_gate_first(harness: DeployHarness) -> None:
    # Given an action with an execute of its own
    harness.host.whole_run = {"methods": ["execute"], "runner": "sdk"}

    # When the agent allows it, then it runs whole
    assert pass_gate(harness) == Continue(SUBMIT)
    assert len(harness.agent.asked) == 1
    assert harness.run().state.whole_run == harness.host.whole_run
    # And after a kill still does
    assert pass_gate(harness) == Continue(SUBMIT)


def test_a_denied_action_does_not_run_whole_either(harness: DeployHarness) -> None:
    harness.host.whole_run = {"methods": ["execute"], "runner": "sdk"}
    harness.agent.answer = {"allowed": False, "reasons": ["cpu"]}

    with pytest.raises(RuntimeError, match="Serve deploy denied"):
        pass_gate(harness)


def test_an_action_that_plans_no_deployment_needs_no_gate(harness: DeployHarness) -> None:
    harness.host.plan, harness.host.whole_run = {"ok": True}, {"methods": [], "runner": "sdk"}

    assert pass_gate(harness) == Continue(SUBMIT)
    assert harness.agent.asked == []


def test_what_users_read_is_in_their_language(harness: DeployHarness) -> None:
    # Given a run in Korean
    harness.accept("43", language="ko")

    # When it passes the gate
    harness.step(CAPACITY_GATE, lambda run: capacity_gate(run, harness.services), "43")

    # Then its message is Korean
    said = [json.loads(each)["data"]["content"] for each in harness.messages("43").splitlines()]
    assert said == ["클러스터에 여유가 있습니다."]
