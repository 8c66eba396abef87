"""The capacity gate as a step."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from fakeredis import FakeRedis

from tests.unit.deploy.deploy_helpers import STORED_PLAN, Yard
from tests.unit.runs.runs_helpers import RecordingSender
from worker.deploy import gate
from worker.deploy.gate import capacity_gate
from worker.deploy.plan import CAPACITY_GATE, SERVE_RUN
from worker.platform import ClientConnectionError, ClientTimeoutError, MalformedResponseError, ServerError
from worker.plugins import PluginCallError, PluginHostUnavailableError
from worker.runs.model import Continue, Outcome


def pass_gate(yard: Yard) -> Outcome:
    return yard.step(CAPACITY_GATE, lambda run: capacity_gate(run, yard.services))


def error_of(yard: Yard) -> str:
    end = yard.run().end
    assert end is not None
    return end.error


def test_a_yes_leads_to_the_submission(yard: Yard) -> None:
    assert pass_gate(yard) == Continue(SERVE_RUN)
    assert yard.run().state.plan == STORED_PLAN
    assert yard.services.the_agent.asked == [
        {
            "kind": "serve",
            "num_cpus": 2.0,
            "num_gpus": 0.0,
            "memory_bytes": None,
            "replicas": 3,
            "metadata": {"plugin_code": "digits@1.0.0", "agent": 1},
        }
    ]


def test_a_no_ends_the_run_and_touches_nothing(yard: Yard) -> None:
    yard.services.the_agent.answer = {"allowed": False, "reasons": ["cpu", "gpu"]}
    with pytest.raises(RuntimeError):
        pass_gate(yard)
    assert error_of(yard) == "Serve deploy denied: insufficient cluster capacity (['cpu', 'gpu'])"
    assert yard.host.calls == ["plan"]


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
def test_an_agent_that_cannot_be_asked_means_no(yard: Yard, error: Exception, name: str) -> None:
    yard.services.the_agent.answer = error
    with pytest.raises(RuntimeError) as failure:
        pass_gate(yard)
    assert str(failure.value) == f"Serve deploy capacity check failed: agent unreachable ({name})"
    assert type(failure.value.__cause__) is type(error)
    assert error_of(yard) == str(failure.value)
    assert len(yard.services.the_agent.asked) == 1


def test_an_agent_that_cannot_be_looked_up_means_no(yard: Yard) -> None:
    yard.services.the_agent = ServerError()
    with pytest.raises(RuntimeError) as failure:
        pass_gate(yard)
    assert str(failure.value) == "Serve deploy capacity check failed: agent unreachable (ServerError)"
    assert isinstance(failure.value.__cause__, ServerError)


def test_without_an_agent_the_gate_is_skipped_with_a_warning(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard.services.the_agent = None
    said: list[str] = []
    monkeypatch.setattr(gate, "log", SimpleNamespace(warning=said.append))
    assert pass_gate(yard) == Continue(SERVE_RUN)
    assert said == ["serve capacity gate skipped: agent_client not provided"]


def test_without_a_cluster_the_run_ends_with_what_to_set(
    redis: FakeRedis, sender: RecordingSender, tmp_path: Path
) -> None:
    yard = Yard(redis, sender, tmp_path, ray_address=None)
    yard.accept()
    with pytest.raises(RuntimeError, match="RAY_ADDRESS"):
        pass_gate(yard)
    assert yard.host.calls == []


def test_a_second_delivery_after_the_yes_does_not_ask_again(yard: Yard) -> None:
    pass_gate(yard)
    assert pass_gate(yard) == Continue(SERVE_RUN)
    assert len(yard.services.the_agent.asked) == 1


def test_what_the_plugin_raises_ends_the_run(yard: Yard) -> None:
    yard.host.broken["plan"] = PluginCallError("ValueError", "no weights", "plugin/deployment.py:3 in plan")
    with pytest.raises(RuntimeError, match=r"Plugin digits@1\.0\.0 failed to plan: ValueError: no weights"):
        pass_gate(yard)
    assert "plugin/deployment.py:3" in yard.told()


def test_a_host_that_is_away_is_waited_for(yard: Yard) -> None:
    yard.host.broken["plan"] = PluginHostUnavailableError("away")
    with pytest.raises(PluginHostUnavailableError):
        pass_gate(yard)
    assert yard.run().end is None
