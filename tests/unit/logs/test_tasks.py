"""`tail_logs`: which messages add a subscription, and which are rejected."""

import json
from types import SimpleNamespace

import pytest
from celery import Celery
from fakeredis import FakeRedis

from shared.channels import dead_letters_key
from tests.unit.workflow.harness import FakeServices, TaskRunner
from worker.logs import tasks
from worker.runs.events import log_state_key
from worker.runs.keys import open_logs_key


@pytest.fixture
def task_runner(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> TaskRunner:
    services = FakeServices(redis)
    services.settings = SimpleNamespace(worker_stream_max_lines=70_000)  # type: ignore[attr-defined]
    monkeypatch.setattr("worker.workflow.task.services", lambda: services)
    monkeypatch.setattr(tasks, "services", lambda: services)
    app = Celery("test-logs", broker="memory://", set_as_current=False)
    app.finalize()
    return TaskRunner(app, monkeypatch)


def test_message_adds_a_subscription(task_runner: TaskRunner, redis: FakeRedis) -> None:
    assert task_runner.deliver("tail_logs", job=42, ray_job="raysubmit_1", agent=3).ended == "acknowledged"

    assert redis.zrange(open_logs_key(), 0, -1, withscores=True) == [("42/raysubmit_1", 0.0)]
    state = redis.hgetall(log_state_key("42"))
    assert json.loads(state["log:raysubmit_1"]) == {"agent": 3, "protocol": "auto"}
    # The history keeps at least as many entries as the relay may write.
    assert int(state["longest"]) >= 70_000


def test_repeated_message_keeps_the_claim_of_the_relay(task_runner: TaskRunner, redis: FakeRedis) -> None:
    task_runner.deliver("tail_logs", job=42, ray_job="raysubmit_1")
    redis.zadd(open_logs_key(), {"42/raysubmit_1": 99.0})

    task_runner.deliver("tail_logs", job=42, ray_job="raysubmit_1")

    assert redis.zscore(open_logs_key(), "42/raysubmit_1") == 99.0


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"ray_job": "../etc"}, "ray_job"),
        ({"protocol": "carrier-pigeon"}, "protocol"),
        ({"url": "http://evil"}, "url"),
        ({"job": None}, "job"),
    ],
)
def test_invalid_message_becomes_a_dead_letter_with_a_reason(
    wrong: dict[str, object], reason: str, task_runner: TaskRunner, redis: FakeRedis
) -> None:
    task_runner.deliver_all("tail_logs", {"job": 42, "ray_job": "raysubmit_1", **wrong})

    [(_, letter)] = redis.xrange(dead_letters_key())
    assert letter["task"] == "tail_logs"
    assert reason in letter["reason"]
    assert not redis.exists(open_logs_key())
    assert redis.keys("synapse:jobs:*") == []


def test_positional_arguments_are_rejected(task_runner: TaskRunner, redis: FakeRedis) -> None:
    task_runner.deliver("tail_logs", 42, "raysubmit_1")

    [(_, letter)] = redis.xrange(dead_letters_key())
    assert "by name" in letter["reason"]
