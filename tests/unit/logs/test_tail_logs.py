"""The task_runner: what is booked, what is refused."""

import json
from types import SimpleNamespace

import pytest
from celery import Celery
from fakeredis import FakeRedis

from shared.channels import DEAD_LETTERS
from tests.unit.workflow.harness import FakeServices, TaskRunner
from worker.logs import tasks
from worker.logs.subscriptions import OPEN
from worker.runs.events import log_state_key


@pytest.fixture
def task_runner(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> TaskRunner:
    services = FakeServices(redis)
    services.settings = SimpleNamespace(worker_stream_max_lines=70_000)  # type: ignore[attr-defined]
    monkeypatch.setattr("worker.workflow.task.services", lambda: services)
    monkeypatch.setattr(tasks, "services", lambda: services)
    app = Celery("test-logs", broker="memory://", set_as_current=False)
    app.finalize()
    return TaskRunner(app, monkeypatch)


def test_message_books_a_log(task_runner: TaskRunner, redis: FakeRedis) -> None:
    assert task_runner.deliver("tail_logs", job=42, ray_job="raysubmit_1", agent=3).ended == "acknowledged"

    assert redis.zrange(OPEN, 0, -1, withscores=True) == [("42/raysubmit_1", 0.0)]
    state = redis.hgetall(log_state_key("42"))
    assert json.loads(state["log:raysubmit_1"]) == {"agent": 3, "protocol": "auto"}
    # The history holds at least what the relay may carry.
    assert int(state["longest"]) >= 70_000


def test_message_that_comes_again_takes_no_log_from_its_relay(
    task_runner: TaskRunner, redis: FakeRedis
) -> None:
    task_runner.deliver("tail_logs", job=42, ray_job="raysubmit_1")
    redis.zadd(OPEN, {"42/raysubmit_1": 99.0})

    task_runner.deliver("tail_logs", job=42, ray_job="raysubmit_1")

    assert redis.zscore(OPEN, "42/raysubmit_1") == 99.0


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"ray_job": "../etc"}, "ray_job"),
        ({"protocol": "carrier-pigeon"}, "protocol"),
        ({"url": "http://evil"}, "url"),
        ({"job": None}, "job"),
    ],
)
def test_message_that_is_wrong_is_kept_with_the_reason_and_changes_no_job(
    wrong: dict[str, object], reason: str, task_runner: TaskRunner, redis: FakeRedis
) -> None:
    task_runner.deliver_all("tail_logs", {"job": 42, "ray_job": "raysubmit_1", **wrong})

    [(_, letter)] = redis.xrange(DEAD_LETTERS)
    assert letter["task"] == "tail_logs"
    assert reason in letter["reason"]
    assert not redis.exists(OPEN)
    assert redis.keys("synapse:jobs:*") == []


def test_arguments_without_names_are_refused(task_runner: TaskRunner, redis: FakeRedis) -> None:
    task_runner.deliver("tail_logs", 42, "raysubmit_1")

    [(_, letter)] = redis.xrange(DEAD_LETTERS)
    assert "by name" in letter["reason"]
