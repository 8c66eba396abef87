"""Revoked ids are kept in Redis, for workers that start later; no message is dropped without a word."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from celery.concurrency.thread import TaskPool as ThreadPool
from celery.utils.imports import symbol_by_name
from celery.worker import state
from celery.worker.control import Panel
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError as RedisConnectionError

# Registered before the apps of these tests: what is imported later would find their names taken.
import worker.deploy.tasks
import worker.logs.tasks
import worker.pre_processor.tasks
import worker.to_task.tasks
import worker.workflow.control  # noqa: F401
from shared.channels import logs_history
from shared.statuses import JobStatus
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.broker.task_messages import message
from tests.unit.runs.example_workflow import FIRST
from tests.unit.workflow.harness import Backend, FakeServices, TaskRunner, dead_letters
from worker.broker.rejections import message_rejected
from worker.lua import redis_time
from worker.runs.model import STOPPED, Run
from worker.runs.runs import Runs
from worker.workflow import rejected_jobs, revocations
from worker.workflow.dead_letters import DeadLetters
from worker.workflow.revocations import (
    CANNOT_TERMINATE,
    KEPT_SECONDS,
    RevocationsStep,
    can_terminate,
    keep_revoked,
    revoked_key,
)
from worker.workflow.task import StepTask


@pytest.fixture(autouse=True)
def revoked(services: FakeServices, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What this process knows, which is nothing at first."""
    monkeypatch.setattr(revocations, "services", lambda: services)
    state.reset_state()
    yield state.revoked
    state.reset_state()


def test_worker_that_starts_later_knows_what_was_revoked(revoked: Any) -> None:
    # Given a worker that revokes two messages, and ends
    consumer = SimpleNamespace(pool=None)
    backend = SimpleNamespace(get_state=lambda _: "SUCCESS")
    app = SimpleNamespace(backend=backend)
    Panel.data["revoke"](SimpleNamespace(consumer=consumer, app=app), ["one", "two"])
    revoked.clear()

    # When another one starts
    timer = SimpleNamespace(call_after=lambda *_: None)
    RevocationsStep(SimpleNamespace()).start(SimpleNamespace(timer=timer))

    # Then it knows them
    assert set(revoked) == {"one", "two"}


def test_ids_are_forgotten_after_hours(redis: Any, revoked: Any) -> None:
    redis.zadd(revoked_key(), {"old": redis_time(redis) - KEPT_SECONDS - 1})
    revocations.load_revoked(redis)
    assert not list(revoked)
    keep_revoked(redis, ["new"])
    assert redis.zrange(revoked_key(), 0, -1) == ["new"]
    assert 0 < redis.ttl(revoked_key()) <= KEPT_SECONDS


MESSAGE = {"job": 42, "plugin": "digits@1.0.0", "agent": 1}
PAST = (datetime.now(UTC) - timedelta(seconds=3)).isoformat()


@pytest.fixture
def connected(services: FakeServices, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingPublisher]:
    """What is published while the app has connected the rejections of the broker."""
    monkeypatch.setattr(rejected_jobs, "services", lambda: services)
    monkeypatch.setattr(rejected_jobs, "RUN_TASKS", ("deploy", "test.deploy"))
    monkeypatch.setattr(message_rejected, "receivers", [])
    message_rejected.connect(rejected_jobs.reject_undelivered)
    yield services.sender
    message_rejected.disconnect(rejected_jobs.reject_undelivered)


def receive(kwargs: dict[str, Any], task: str = "deploy", **headers: Any) -> Any:
    """The request that a worker makes of a message, and whether it drops it."""
    app = Celery("revoked", broker="memory://", set_as_current=False)

    def entry(self: StepTask, **_: Any) -> None: ...

    app.finalize()
    if task not in app.tasks:
        app.task(base=StepTask, bind=True, name=task, shared=False)(entry)
    received = message([[], kwargs, {}], task=task, id="m1", **headers)
    received.ack = Mock()
    request_class = symbol_by_name(app.tasks[task].Request)
    on_ack = lambda *_: received.ack()  # noqa: E731
    return request_class(received, app=app, task=app.tasks[task], eventer=None, on_ack=on_ack)


@pytest.mark.parametrize(
    ("headers", "ids", "reason"),
    [({"expires": PAST}, [], "expired before it began"), ({}, ["m1"], "revoked")],
)
def test_job_of_a_dropped_message_ends_stopped(
    connected: RecordingPublisher,
    task_runner: TaskRunner,
    backend: Backend,
    redis: FakeRedis,
    revoked: Any,
    headers: dict[str, str],
    ids: list[str],
    reason: str,
) -> None:
    # Given a message that has expired, or was revoked while it waited
    revoked.update(ids)
    request = receive(MESSAGE, **headers)

    # When a worker reads it, and another one what follows
    assert request.revoked()
    [sent] = connected.of("runs.refuse_job")
    task_runner.deliver("runs.refuse_job", **sent.kwargs)

    # Then its job is STOPPED with the reason, and the message is a dead letter
    assert backend.patches == [{"status": JobStatus.STOPPED, "result": {"error": reason}}]
    [letter] = dead_letters(redis)
    assert (letter["task"], letter["reason"]) == ("deploy", reason)
    request.message.ack.assert_called_once()


def test_job_of_an_expired_message_is_not_opened_again(
    connected: RecordingPublisher, task_runner: TaskRunner, backend: Backend, redis: FakeRedis
) -> None:
    # Given a job that is STOPPED because its message had expired; its worker dies right after it said so
    receive(MESSAGE, expires=PAST).revoked()
    kwargs = connected.of("runs.refuse_job")[0].kwargs
    for _ in range(2):
        task_runner.deliver("runs.refuse_job", **kwargs)

    # When its dead letter is to be replayed, then it is not
    assert backend.status == "STOPPED"
    assert len(backend.patches) == 1
    assert not DeadLetters(redis).replay("42")


def test_job_that_somebody_else_stopped_is_left_alone(
    connected: RecordingPublisher, task_runner: TaskRunner, backend: Backend, redis: FakeRedis
) -> None:
    receive(MESSAGE, expires=PAST).revoked()
    backend.status = "STOPPED"

    task_runner.deliver("runs.refuse_job", **connected.of("runs.refuse_job")[0].kwargs)

    assert backend.patches == []
    assert not DeadLetters(redis).replay("42")


def test_dropped_message_that_cannot_be_kept_stays_in_redis(
    connected: RecordingPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_rejected, "receivers", [])
    request = receive(MESSAGE, expires=PAST)

    assert request.revoked()

    request.message.ack.assert_not_called()


@pytest.mark.parametrize("task", ["tail_logs", "stop"])
def test_dropped_message_that_starts_no_run_is_kept(
    connected: RecordingPublisher, redis: FakeRedis, task: str
) -> None:
    assert receive({"job": 42}, task=task, expires=PAST).revoked()

    assert [letter["task"] for letter in dead_letters(redis)] == [task]
    assert connected.published == []


@pytest.fixture
def running(connected: RecordingPublisher, services: FakeServices, run: Run) -> Runs:
    """The run of job 42, which has begun its first step."""
    services.runs.store.claim_step("42", FIRST, "", "token", 30, 0, False)
    return services.runs


def log_of(runs: Runs) -> list[str]:
    return [entry.get("line", "") for _, entry in runs.redis.xrange(logs_history("42"))]


@pytest.mark.parametrize(("headers", "reason"), [({"expires": PAST}, "expired"), ({}, "revoked")])
def test_run_of_a_dropped_step_ends_stopped_and_says_why(
    connected: RecordingPublisher, running: Runs, revoked: Any, headers: dict[str, str], reason: str
) -> None:
    # Given a step that an operator revokes while it waits
    revoked.update([] if headers else ["m1"])
    request = receive({"job": "42"}, task=FIRST.name, **headers)

    # When a worker reads its message
    assert request.revoked()

    # Then the run is STOPPED, its log says why, and the step comes once more, to clean up
    assert running.store.load("42").end == STOPPED
    assert f"{FIRST.name} was dropped ({reason}): the run is stopped." in log_of(running)
    assert [each.kwargs["job"] for each in connected.of(FIRST.name)] == ["42"]
    request.message.ack.assert_called_once()


def test_revoked_step_of_an_ended_run_comes_again_to_clean_up(
    connected: RecordingPublisher, running: Runs, revoked: Any
) -> None:
    # Given a run that was stopped amid its step, whose next message cleans up
    running.finish("42", STOPPED)
    before = log_of(running)
    revoked.update(["m1"])

    # When that message is revoked
    assert receive({"job": "42"}, task=FIRST.name).revoked()

    # Then there is another one
    assert len(connected.of(FIRST.name)) == 1
    assert log_of(running) == before


@pytest.mark.parametrize("lost", ["finish_all", "exists", "load"])
def test_dropped_step_stays_in_redis_until_its_run_is_stopped(
    running: Runs, revoked: Any, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    def away(*_: Any) -> None:
        raise RedisConnectionError("away")

    monkeypatch.setattr(running.store, lost, away)
    revoked.update(["m1"])
    request = receive({"job": "42"}, task=FIRST.name)

    assert request.revoked()

    request.message.ack.assert_not_called()


@pytest.mark.parametrize(
    ("task", "kwargs"),
    [("pre_processor.await_ready", {"room": "x"}), ("runs.refuse_job", {"job": "42", "reason": "x"})],
)
def test_dropped_message_that_is_no_step_is_left_to_the_sweep(
    connected: RecordingPublisher, running: Runs, task: str, kwargs: dict[str, Any]
) -> None:
    assert receive(kwargs, task=task, expires=PAST).revoked()

    assert running.store.load("42").end is None
    assert connected.published == []
    assert dead_letters(running.redis) == []


@pytest.mark.parametrize("has_begun", [True, False], ids=["at work", "about to begin"])
def test_terminate_on_threads_stops_the_run_and_says_so(running: Runs, has_begun: bool) -> None:
    # Given a pool of threads, and a step that one of them works on, or has just been given
    assert can_terminate(SimpleNamespace(terminate_job=lambda *_: None))
    assert not can_terminate(ThreadPool(1))
    request = receive({"job": "42"}, task=FIRST.name)
    request.time_start = 1.0 if has_begun else None
    state.task_reserved(request)

    # When it is terminated
    backend = SimpleNamespace(get_state=lambda _: "SUCCESS")
    worker = SimpleNamespace(
        consumer=SimpleNamespace(pool=ThreadPool(1)), app=SimpleNamespace(backend=backend)
    )
    answer = Panel.data["revoke"](worker, ["m1"], terminate=True)
    if not has_begun:
        assert running.store.load("42").end is None
        request.on_accepted(1, 0.0)

    # Then its run ends, which its thread hears, and the answer says what was done
    assert answer["ok"].endswith(CANNOT_TERMINATE)
    assert running.store.load("42").end == STOPPED


def test_terminate_of_an_unknown_task_promises_nothing() -> None:
    worker = SimpleNamespace(
        consumer=SimpleNamespace(pool=ThreadPool(1)),
        app=SimpleNamespace(backend=SimpleNamespace(get_state=lambda _: "SUCCESS")),
    )
    assert Panel.data["revoke"](worker, ["m1"], terminate=True) == {"ok": "terminate: tasks unknown"}
