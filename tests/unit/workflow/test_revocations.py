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

from shared.statuses import JobStatus
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.broker.task_messages import message
from tests.unit.workflow.harness import Backend, FakeServices, TaskRunner, dead_letters
from worker.broker.rejections import message_rejected
from worker.lua import redis_time
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
def revoked(redis: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What this process knows, which is nothing at first."""
    monkeypatch.setattr(revocations, "services", lambda: SimpleNamespace(redis=redis))
    state.revoked.clear()
    yield state.revoked
    state.revoked.clear()


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


def test_dropped_step_is_left_to_the_sweep(connected: RecordingPublisher, redis: FakeRedis) -> None:
    assert receive({"job": "42"}, task="deploy.register", expires=PAST).revoked()

    assert dead_letters(redis) == []


def test_terminate_leaves_threads_and_says_what_ends_a_run() -> None:
    # Given a pool of threads, and a task at work
    assert can_terminate(SimpleNamespace(terminate_job=lambda *_: None))
    assert not can_terminate(ThreadPool(1))
    request = receive(MESSAGE)
    request.time_start = 1.0
    request.terminate(ThreadPool(1))

    # When it is terminated
    backend = SimpleNamespace(get_state=lambda _: "SUCCESS")
    worker = SimpleNamespace(
        consumer=SimpleNamespace(pool=ThreadPool(1)), app=SimpleNamespace(backend=backend)
    )
    answer = Panel.data["revoke"](worker, ["one"], terminate=True)

    # Then it goes on, and the answer says how to end its run
    assert answer["ok"].endswith(CANNOT_TERMINATE)
