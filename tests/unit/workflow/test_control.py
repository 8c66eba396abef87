"""The tasks on the queue `control`: reports and stops."""

import json
from typing import Any

import pytest
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.statuses import JobStatus
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.workflow.harness import (
    MESSAGE,
    Backend,
    FakeServices,
    TaskRunner,
    dead_letters,
    deliver_and_begin,
)
from worker.runs.keys import RunField, lock_key, run_key
from worker.runs.model import End
from worker.runs.reports import reporter
from worker.runs.reports.outbox import REPORT


def test_a_report_that_an_older_worker_asks_for_is_entered(
    task_runner: TaskRunner, services: FakeServices
) -> None:
    # Given a run whose older worker published the message of its report
    deliver_and_begin(task_runner, services)

    # When this worker gets it, with the arguments of that release
    delivery = task_runner.deliver("runs.report", job="42", generation=3, attempt=1, redelivered=False)

    # Then one worker finds the job in the outbox, at once
    assert delivery.ended == "acknowledged"
    assert services.runs.outbox.take_over() == ["42"]


def test_stop_ends_a_run(task_runner: TaskRunner, services: FakeServices, sender: RecordingPublisher) -> None:
    deliver_and_begin(task_runner, services)

    task_runner.deliver("stop", job=42)

    end = services.runs.store.load("42").end
    assert end is not None
    assert end.status is JobStatus.STOPPED


def test_a_stop_ends_a_job_once_that_is_accepted_meanwhile(
    task_runner: TaskRunner, services: FakeServices, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job whose message is read, and its end reported, while the stop looks at the backend's job
    get_job, waits = backend.get_job, []

    def slow(job: str) -> dict[str, Any]:
        monkeypatch.setattr(backend, "get_job", get_job)
        found = backend.get_job(job)
        task_runner.deliver("test.deploy", **MESSAGE)
        waits.append(reporter.report("42", services.runs, services.backend))
        return found

    monkeypatch.setattr(backend, "get_job", slow)

    # When the stop goes on
    task_runner.deliver("stop", job=42)
    assert waits == [reporter.LOCKED_SECONDS]
    reporter.report("42", services.runs, services.backend)

    # Then the backend is reported once
    assert [patch["status"] for patch in backend.patches] == [JobStatus.STOPPED]
    assert services.runs.store.is_reported("42")


def test_a_stop_is_redone_when_the_lock_of_a_dead_worker_ends(
    task_runner: TaskRunner, services: FakeServices, backend: Backend
) -> None:
    # Given a stop that is delivered again at once, as RabbitMQ does, while the dead worker's lock still holds
    key, token = lock_key("42", REPORT), "of-the-dead"
    assert services.runs.locks.acquire(key, token)
    again = task_runner.deliver("stop", job=42)
    assert again.ended == "retried"
    assert backend.patches == []

    # When the lock is free
    services.redis.delete(key)
    task_runner.deliver("stop", **again.kwargs)

    # Then the backend is reported
    assert [patch["status"] for patch in backend.patches] == [JobStatus.STOPPED]


def test_stop_of_an_ended_run_changes_nothing(task_runner: TaskRunner, services: FakeServices) -> None:
    deliver_and_begin(task_runner, services)
    services.runs.finish("42", End(JobStatus.SUCCEEDED, {}))

    task_runner.deliver("stop", job=42)

    end = services.runs.store.load("42").end
    assert end == End(JobStatus.SUCCEEDED, {})


@pytest.mark.parametrize("kwargs", [{}, {"job": "a b"}, {"job": 1, "colour": "red"}])
def test_wrong_stop_is_kept_and_harms_no_job(
    task_runner: TaskRunner, redis: FakeRedis, sender: RecordingPublisher, kwargs: dict[str, Any]
) -> None:
    task_runner.deliver("stop", **kwargs)

    assert dead_letters(redis)[0]["task"] == "stop"
    assert sender.published == []


def test_stop_by_position_is_kept(task_runner: TaskRunner, redis: FakeRedis) -> None:
    task_runner.deliver("stop", 42)

    assert len(dead_letters(redis)) == 1


def test_a_stop_is_retried_while_redis_is_unavailable(
    task_runner: TaskRunner, services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise RedisConnectionError("away")

    monkeypatch.setattr(services.runs.store, "remember_stop", away)

    assert task_runner.deliver("stop", job=42).ended == "retried"


def test_a_message_of_a_newer_run_is_left_to_newer_workers(
    task_runner: TaskRunner, services: FakeServices, redis: FakeRedis, backend: Backend
) -> None:
    # Given a run whose message has a field that this release does not know
    task_runner.deliver("test.deploy", **MESSAGE)
    stored = json.loads(redis.hget(run_key("42"), RunField.MESSAGE))
    stored["kwargs"]["dry_run"] = True
    redis.hset(run_key("42"), RunField.MESSAGE, json.dumps(stored))

    # When this worker gets one of its messages
    delivery = task_runner.deliver("test.deploy", **MESSAGE)

    # Then it returns to the queue for another worker
    assert (delivery.ended, delivery.countdown, delivery.kwargs) == ("retried", 5.0, MESSAGE)
    assert (backend.patches, dead_letters(redis)) == ([], [])
