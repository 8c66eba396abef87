"""The capacity gate: what is asked, and every way in which it says no."""

import logging
from typing import Any

import pytest

from worker.actions import deployment
from worker.actions.base import RuntimeContext
from worker.actions.deployment import BaseDeploymentAction, check_serve_capacity
from worker.platform import (
    AuthenticationError,
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    MalformedResponseError,
    ServerError,
)


class Agent:
    """Answers, or raises, what it was given."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []

    def check_feasibility(self, **asked: Any) -> Any:
        self.asked.append(asked)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def ask(agent: Any, actor: dict[str, Any] | None = None, serve: dict[str, Any] | None = None) -> None:
    check_serve_capacity(
        agent,
        app_name="cat@1.0",
        agent=7,
        ray_actor_options=actor or {},
        serve_options=serve or {},
        logger=logging.getLogger("gate"),
    )


def test_it_asks_once_with_defaults() -> None:
    agent = Agent({"allowed": True})
    ask(agent)
    assert agent.asked == [
        {
            "kind": "serve",
            "num_cpus": 1.0,
            "num_gpus": 0.0,
            "memory_bytes": None,
            "replicas": 1,
            "metadata": {"plugin_code": "cat@1.0", "agent": 7},
        }
    ]


@pytest.mark.parametrize(
    ("serve", "replicas"),
    [
        ({"num_replicas": 3}, 3),
        ({"num_replicas": "auto"}, 1),
        ({"autoscaling_config": {"min_replicas": 2, "max_replicas": 9}}, 2),
        ({"autoscaling_config": {"min_replicas": 2, "initial_replicas": 4}}, 4),
        ({"autoscaling_config": {"min_replicas": 0}}, 1),
        ({"autoscaling_config": {}}, 1),
    ],
)
def test_it_asks_for_every_replica(serve: dict[str, Any], replicas: int) -> None:
    agent = Agent({"allowed": True})
    ask(agent, {"num_cpus": 2, "num_gpus": 0.5, "memory": 1024}, serve)
    asked = agent.asked[0]
    assert (asked["num_cpus"], asked["num_gpus"], asked["memory_bytes"]) == (2.0, 0.5, 1024)
    assert asked["replicas"] == replicas


def test_a_refusal_prints_the_reasons_as_python_does() -> None:
    with pytest.raises(RuntimeError) as caught:
        ask(Agent({"allowed": False, "reasons": ["not enough CPU", "quota"]}))
    assert str(caught.value) == (
        "Serve deploy denied: insufficient cluster capacity (['not enough CPU', 'quota'])"
    )
    with pytest.raises(RuntimeError, match=r"\(\[\]\)$"):
        ask(Agent({"allowed": False}))


def test_reasons_without_end_are_cut() -> None:
    with pytest.raises(RuntimeError) as caught:
        ask(Agent({"allowed": False, "reasons": ["no GPU", "y" * 5_000_000, "never read"]}))
    message = str(caught.value)
    assert message.startswith("Serve deploy denied: insufficient cluster capacity (['no GPU', 'yyy")
    assert message.endswith("y…'])")
    assert len(message) < 2_100


def test_many_reasons_are_cut() -> None:
    with pytest.raises(RuntimeError) as caught:
        ask(Agent({"allowed": False, "reasons": [{"node": node} for node in range(100_000)]}))
    assert "([{'node': 0}, {'node': 1}, " in str(caught.value)
    assert len(str(caught.value)) < 2_100


def test_reasons_that_are_no_text_have_no_secrets() -> None:
    reason = {"detail": "see http://u:pw@h/x?token=abc123", "token": "deadbeef99", "free": [1, 0.5]}
    with pytest.raises(RuntimeError) as caught:
        ask(Agent({"allowed": False, "reasons": [reason]}))
    assert str(caught.value).endswith("([{'detail': 'see <url>', 'token': '***', 'free': [1, 0.5]}])")


@pytest.mark.parametrize(
    "error",
    [
        ClientError("x"),
        ClientTimeoutError("x"),
        ClientConnectionError("x"),
        AuthenticationError("x"),
        ServerError("x"),
        TimeoutError("x"),
        ConnectionError("x"),
        ConnectionRefusedError("x"),
        OSError("x"),
    ],
)
def test_an_agent_that_cannot_be_asked_means_no(error: Exception) -> None:
    with pytest.raises(RuntimeError) as caught:
        ask(Agent(error))
    name = type(error).__name__
    assert str(caught.value) == f"Serve deploy capacity check failed: agent unreachable ({name})"
    assert type(caught.value.__cause__) is type(error)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        "yes",
        {},
        {"allowed": "true"},
        {"allowed": 1},
        {"allowed": None},
        MalformedResponseError("x"),
    ],
)
def test_a_malformed_answer_means_no(answer: Any) -> None:
    with pytest.raises(RuntimeError) as caught:
        ask(Agent(answer))
    assert str(caught.value) == "Serve deploy capacity check failed: agent unreachable (MalformedResponse)"
    assert isinstance(caught.value.__cause__, MalformedResponseError)


def test_the_cause_has_no_secrets() -> None:
    with pytest.raises(RuntimeError) as caught:
        ask(Agent(ConnectionError("http://agent.test/resources?token=hush failed")))
    assert "hush" not in str(caught.value.__cause__)
    assert "agent.test" not in str(caught.value.__cause__)


def test_without_an_agent_it_says_so_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ask(None)
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("WARNING", "serve capacity gate skipped: agent_client not provided")
    ]


def test_other_errors_are_bugs_and_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        ask(Agent(ZeroDivisionError()))


def test_the_method_reads_the_messages_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "_CAPACITY_DENIED_MSG", "no: {reasons}")
    ctx = RuntimeContext({"SYNAPSE_PLUGIN_RELEASE_CODE": "cat@1.0"}, agent_client=Agent({"allowed": False}))
    action: BaseDeploymentAction[Any] = BaseDeploymentAction({}, ctx)
    with pytest.raises(RuntimeError, match=r"^no: \[\]$"):
        action._check_serve_capacity({}, {})
