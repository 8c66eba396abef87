"""The tasks on the queue `control`: reports and stops."""

import json
from typing import Any

import pytest
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.statuses import JobStatus
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.conftest import Clock
from tests.unit.workflow.harness import (
    MESSAGE,
    Backend,
    FakeServices,
    TaskRunner,
    dead_letters,
    deliver_and_begin,
)
from worker.platform import AuthorizationError, ClientError, HTTPError, RateLimitError, ServerError
from worker.runs import reporter
from worker.runs.keys import RunField, heartbeats_key, lock_key, run_key
from worker.runs.model import End


@pytest.mark.parametrize("ended", [False, True])
def test_copies_of_a_report_of_a_hung_backend_are_dropped(
    task_runner: TaskRunner, backend: Backend, services: FakeServices, clock: Clock, ended: bool
) -> None:
    # Given a report that the backend does not take, and a copy that was delivered meanwhile
    task_runner.deliver("test.deploy", **MESSAGE)
    services.runs.schedule_report("42")
    if ended:
        services.runs.finish("42", End(JobStatus.SUCCEEDED, {"serve_application": 1}))
    backend.patch_error = ServerError()
    copy: dict[str, Any] = {"job": "42", "generation": 0}
    first = task_runner.deliver("runs.report", **copy)
    assert first.ended == "retried"

    # Then the copy dies, and the report does not
    assert task_runner.deliver("runs.report", **copy).ended == "acknowledged"
    backend.patch_error = None
    clock.forward(2)
    assert task_runner.deliver("runs.report", **first.kwargs).ended in ("acknowledged", "retried")
    assert len(backend.patches) == 1


def test_a_redelivered_report_without_a_successor_continues(
    task_runner: TaskRunner, backend: Backend, services: FakeServices
) -> None:
    task_runner.deliver("test.deploy", **MESSAGE)
    services.runs.schedule_report("42")
    services.runs.generations.advance("42", "runs.report", 0)  # and here its worker died

    continued = task_runner.deliver("runs.report", job="42", redelivered=True)
    assert continued.kwargs == {"job": "42", "generation": 1, "redelivered": False}
    task_runner.deliver("runs.report", **continued.kwargs)
    assert len(backend.patches) == 1


@pytest.mark.parametrize("locked", [False, True])
def test_a_redelivered_report_continues_after_its_wait(
    task_runner: TaskRunner,
    backend: Backend,
    services: FakeServices,
    redis: FakeRedis,
    clock: Clock,
    locked: bool,
) -> None:
    # Given a report whose worker died after it announced the next one, soon after a PATCH
    task_runner.deliver("test.deploy", **MESSAGE)
    run = services.runs.store.load("42")
    services.runs.mark_running(run)
    task_runner.deliver("runs.report", job="42")
    services.runs.set_progress(run, "deploy", 50)
    services.runs.generations.advance("42", "runs.report", 0)
    if locked:
        redis.set(lock_key("42", "runs.report"), "the dead one's")

    # When it is delivered again, and has to wait
    waiting = task_runner.deliver("runs.report", job="42", redelivered=True)
    assert waiting.ended == "retried"
    redis.delete(lock_key("42", "runs.report"))
    clock.forward(2)

    # Then it is not taken for an old copy when it is back (the broker says "redelivered" only once)
    task_runner.deliver("runs.report", **{**waiting.kwargs, "redelivered": False})
    assert len(backend.patches) == 2


def test_a_new_report_of_a_run_is_not_superseded(
    task_runner: TaskRunner, services: FakeServices, sender: RecordingPublisher
) -> None:
    task_runner.deliver("test.deploy", **MESSAGE)
    services.runs.generations.advance("42", "runs.report", 0)
    services.runs.publish_report("42")
    assert sender.of("runs.report")[-1].kwargs == {"job": "42", "generation": 1}


def test_a_report_is_sent_and_ends(task_runner: TaskRunner, services: FakeServices, backend: Backend) -> None:
    deliver_and_begin(task_runner, services)

    assert task_runner.deliver("runs.report", job="42").ended == "acknowledged"
    assert backend.patches[0]["status"] == JobStatus.RUNNING


def test_a_run_has_one_reporter_at_a_time(
    task_runner: TaskRunner, services: FakeServices, backend: Backend, redis: FakeRedis
) -> None:
    deliver_and_begin(task_runner, services)
    redis.set(lock_key("42", "runs.report"), "another")

    delivery = task_runner.deliver("runs.report", job="42")

    assert delivery.ended == "retried"
    assert backend.patches == []


@pytest.mark.parametrize("end", [None, End(JobStatus.SUCCEEDED, {})], ids=["progress", "end"])
def test_a_suspended_and_replaced_reporter_reports_nothing(
    task_runner: TaskRunner,
    services: FakeServices,
    backend: Backend,
    redis: FakeRedis,
    monkeypatch: pytest.MonkeyPatch,
    end: End | None,
) -> None:
    # Given a report whose sender is suspended until another has reported the end
    deliver_and_begin(task_runner, services)
    runs = services.runs
    runs.schedule_report("42")
    if end is not None:
        runs.finish("42", end)
    snapshot = runs.progress.snapshot

    def slow(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(runs.progress, "snapshot", snapshot)
        found = snapshot(*args, **options)
        redis.set(lock_key("42", "runs.report"), "another")
        runs.finish("42", End(JobStatus.SUCCEEDED, {}))
        reporter.report("42", runs, backend)
        redis.delete(lock_key("42", "runs.report"))
        return found

    monkeypatch.setattr(runs.progress, "snapshot", slow)

    # When it goes on
    again = task_runner.deliver("runs.report", job="42")
    while again.ended == "retried":
        again = task_runner.deliver("runs.report", **again.kwargs)

    # Then the backend hears nothing more
    assert [patch["status"] for patch in backend.patches] == [JobStatus.SUCCEEDED]


def test_the_report_of_an_end_is_retried_until_it_is_taken(
    task_runner: TaskRunner, services: FakeServices, backend: Backend
) -> None:
    deliver_and_begin(task_runner, services)
    services.runs.finish("42", End(JobStatus.FAILED, {"error": "x"}))
    backend.patch_error = ServerError()
    kwargs: dict[str, Any] = {"job": "42"}
    countdowns = []
    for _ in range(200):
        delivery = task_runner.deliver("runs.report", **kwargs)
        kwargs = delivery.kwargs
        countdowns.append(delivery.countdown)
    backend.patch_error = None

    assert countdowns[:8] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert task_runner.deliver("runs.report", **kwargs).ended == "acknowledged"
    assert [patch["status"] for patch in backend.patches] == [JobStatus.FAILED]


@pytest.mark.parametrize(
    ("error", "is_given_up"),
    [(AuthorizationError("no"), True), (HTTPError("gone", status_code=410), True), (ServerError(), False)],
    ids=["403", "410", "500"],
)
def test_an_end_that_is_rejected_for_a_day_is_given_up(
    task_runner: TaskRunner,
    services: FakeServices,
    backend: Backend,
    redis: FakeRedis,
    clock: Clock,
    error: ClientError,
    is_given_up: bool,
) -> None:
    # Given the end of a run that the backend rejects
    deliver_and_begin(task_runner, services)
    services.runs.finish("42", End(JobStatus.SUCCEEDED, {"serve_application": 1}))
    backend.patch_error = error
    clock.forward(86_000)
    assert task_runner.deliver("runs.report", job="42").ended == "retried"

    # When it still does after a day
    clock.forward(500)
    delivery = task_runner.deliver("runs.report", job="42", generation=1)

    # Then nothing more is reported and the run's keys expire; a backend that is down gets it for ever
    assert (delivery.ended == "acknowledged") is is_given_up
    assert services.runs.store.is_reported("42") is is_given_up
    assert (redis.ttl(run_key("42")) > 0) is is_given_up
    assert (redis.zscore(heartbeats_key(), "run:42") is None) is is_given_up


def test_a_report_comes_again_when_the_backend_asks_for_it(
    task_runner: TaskRunner, services: FakeServices, backend: Backend
) -> None:
    deliver_and_begin(task_runner, services)
    backend.patch_error = RateLimitError(retry_after=200)
    assert task_runner.deliver("runs.report", job="42").countdown == 200


def test_a_scheduled_report_is_a_heartbeat(
    task_runner: TaskRunner, services: FakeServices, backend: Backend, clock: Clock
) -> None:
    deliver_and_begin(task_runner, services)
    services.runs.finish("42", End(JobStatus.FAILED, {"error": "x"}))
    backend.patch_error = ServerError()
    clock.forward(60)

    task_runner.deliver("runs.report", job="42", attempt=9)
    clock.forward(60)

    assert services.runs.heartbeats.overdue() == []


def test_a_report_is_retried_while_redis_is_unavailable(
    task_runner: TaskRunner, services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver_and_begin(task_runner, services)

    def away(*_: Any) -> bool:
        raise RedisConnectionError("away")

    monkeypatch.setattr(services.runs.store, "is_reported", away)

    assert task_runner.deliver("runs.report", job="42").ended == "retried"


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
    get_job, sent = backend.get_job, []

    def slow(job: str) -> dict[str, Any]:
        monkeypatch.setattr(backend, "get_job", get_job)
        found = backend.get_job(job)
        task_runner.deliver("test.deploy", **MESSAGE)
        sent.append(task_runner.deliver("runs.report", job="42"))
        return found

    monkeypatch.setattr(backend, "get_job", slow)

    # When the stop goes on
    task_runner.deliver("stop", job=42)
    for report in sent:
        if report.ended == "retried":
            task_runner.deliver("runs.report", **report.kwargs)

    # Then the backend is reported once
    assert [patch["status"] for patch in backend.patches] == [JobStatus.STOPPED]
    assert services.runs.store.is_reported("42")


def test_a_stop_is_redone_when_the_lock_of_a_dead_worker_ends(
    task_runner: TaskRunner, services: FakeServices, backend: Backend
) -> None:
    # Given a stop that is delivered again at once, as RabbitMQ does, while the dead worker's lock still holds
    key, token = lock_key("42", "runs.report"), "of-the-dead"
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


@pytest.mark.parametrize("task", ["runs.report", "test.deploy"])
def test_a_message_of_a_newer_run_is_left_to_newer_workers(
    task_runner: TaskRunner, services: FakeServices, redis: FakeRedis, backend: Backend, task: str
) -> None:
    # Given a run whose message has a field that this release does not know
    task_runner.deliver("test.deploy", **MESSAGE)
    stored = json.loads(redis.hget(run_key("42"), RunField.MESSAGE))
    stored["kwargs"]["dry_run"] = True
    redis.hset(run_key("42"), RunField.MESSAGE, json.dumps(stored))

    # When this worker gets one of its messages
    delivery = task_runner.deliver(task, **(MESSAGE if task == "test.deploy" else {"job": "42"}))

    # Then it returns to the queue for another worker
    assert (delivery.ended, delivery.countdown) == ("retried", 5.0)
    assert delivery.kwargs == (MESSAGE if task == "test.deploy" else {"job": "42", "redelivered": False})
    assert (backend.patches, dead_letters(redis)) == ([], [])
