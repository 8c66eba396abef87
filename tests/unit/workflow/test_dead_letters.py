"""Messages that cannot be accepted: kept, their jobs failed, and replayed."""

import json
from typing import Any
from uuid import UUID

import pytest
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.channels import dead_letters_key, job_key
from shared.statuses import JobStatus
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.conftest import Clock
from tests.unit.workflow.harness import Backend, FakeServices, TaskRunner
from worker.broker import UNKNOWN_STEP, RejectedMessage
from worker.deploy.plan import DEPLOY
from worker.platform import ServerError
from worker.runs.keys import lock_key, rejected_end_key
from worker.workflow.dead_letters import DeadLetters
from worker.workflow.intake import begin_run
from worker.workflow.rejected_jobs import END_REJECTED_JOB, reject_undelivered, seconds_unknown

MESSAGE: dict[str, Any] = {"job": 42, "plugin": "digits@1.0.0", "agent": 1}


def letters(redis: FakeRedis) -> list[dict[str, str]]:
    return [fields for _, fields in redis.xrange(dead_letters_key())]


WRONG: list[dict[str, Any]] = [
    {"job": 42, "plugin": "digits@1.0.0"},
    {**MESSAGE, "agent": "1"},
    {**MESSAGE, "colour": "red"},
    {**MESSAGE, "plugin": "nobody@1.0.0"},
    {**MESSAGE, "plugin": "../digits@1.0.0"},
    {**MESSAGE, "action": "fly"},
]


@pytest.mark.parametrize("kwargs", WRONG)
def test_a_wrong_message_is_kept_whole_and_its_job_failed(
    task_runner: TaskRunner, redis: FakeRedis, sender: RecordingPublisher, kwargs: dict[str, Any]
) -> None:
    assert task_runner.deliver("test.deploy", **kwargs).ended == "acknowledged"

    (letter,) = letters(redis)
    assert letter["task"] == "test.deploy"
    assert json.loads(letter["body"]) == [[], kwargs]
    assert letter.keys() == {"task", "body", "reason", "time"}
    assert [(sent.name, sent.kwargs["reason"]) for sent in sender.published] == [
        ("runs.refuse_job", letter["reason"])
    ]


def test_arguments_by_position_are_rejected(task_runner: TaskRunner, redis: FakeRedis) -> None:
    task_runner.deliver("test.deploy", 42, "digits@1.0.0")

    assert json.loads(letters(redis)[0]["body"]) == [[42, "digits@1.0.0"], {}]


def test_job_of_a_wrong_message_ends_in_whatever_form_it_came(
    task_runner: TaskRunner, sender: RecordingPublisher, redis: FakeRedis
) -> None:
    # Given wrong messages whose job is a UUID, and the first argument by position
    task_runner.deliver("test.deploy", job=UUID(int=7))
    task_runner.deliver("test.deploy", 42, "digits@1.0.0")

    # Then both jobs end, and can be replayed
    jobs = [str(UUID(int=7)), "42"]
    assert [sent.kwargs["job"] for sent in sender.of("runs.refuse_job")] == jobs
    assert [letter.job for letter in DeadLetters(redis).all()] == jobs


def test_reason_names_the_field_and_not_its_value(task_runner: TaskRunner, redis: FakeRedis) -> None:
    task_runner.deliver("test.deploy", **{**MESSAGE, "agent": "hush-hush"})

    reason = letters(redis)[0]["reason"]
    assert reason.startswith("agent: ")
    assert "hush" not in reason


def test_a_redelivered_rejected_message_is_kept_once(
    task_runner: TaskRunner, redis: FakeRedis, sender: RecordingPublisher
) -> None:
    for _ in range(2):
        task_runner.deliver("test.deploy", message_id="the-same", job=42)

    assert len(letters(redis)) == 1


def test_two_rejected_messages_are_both_kept(task_runner: TaskRunner, redis: FakeRedis) -> None:
    for _ in range(2):
        task_runner.deliver("test.deploy", job=42)

    assert len(letters(redis)) == 2


def test_an_unreadable_job_is_not_failed(
    task_runner: TaskRunner, redis: FakeRedis, sender: RecordingPublisher
) -> None:
    task_runner.deliver("test.deploy", job={"a": 1})

    assert len(letters(redis)) == 1
    assert sender.published == []


def test_known_run_is_not_harmed_by_a_wrong_second_message(
    task_runner: TaskRunner, sender: RecordingPublisher
) -> None:
    task_runner.deliver("test.deploy", **MESSAGE)
    sender.published.clear()

    task_runner.deliver("test.deploy", job=42)

    assert sender.published == []


def test_a_rejection_is_retried_while_redis_is_unavailable(
    task_runner: TaskRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise RedisConnectionError("away")

    monkeypatch.setattr("worker.workflow.dead_letters.DeadLetters.add", away)

    assert task_runner.deliver("test.deploy", job=42).ended == "retried"


def test_the_webhook_hears_of_a_rejected_job_once_it_has_ended(
    task_runner: TaskRunner, services: FakeServices, backend: Backend
) -> None:
    # Given a webhook, and a backend that does not take the end at first
    due: list[str] = []
    services.runs.on_webhook_due = due.append
    backend.patch_error = ServerError()
    task_runner.deliver("test.deploy", job=42, plugin="digits@1.0.0", tenant="acme")
    about = services.sender.of(END_REJECTED_JOB.name)[0].kwargs
    task_runner.deliver(END_REJECTED_JOB.name, **about)
    assert due == []

    # When it does
    backend.patch_error = None
    task_runner.deliver(END_REJECTED_JOB.name, **about)

    # Then the webhook is to hear it, too
    assert due == ["42"]
    assert (
        services.redis.hget(rejected_end_key("42"), "message") == '{"task": "", "kwargs": {"tenant": "acme"}}'
    )


def test_a_rejected_job_ends_failed_with_the_reason(task_runner: TaskRunner, backend: Backend) -> None:
    task_runner.deliver("runs.refuse_job", job="42", reason="agent: Field required", tenant="acme")

    assert backend.patches == [{"status": JobStatus.FAILED, "result": {"error": "agent: Field required"}}]
    assert backend.tenants == ["acme"]


def test_a_rejected_job_that_has_ended_is_left_alone(task_runner: TaskRunner, backend: Backend) -> None:
    backend.status = "SUCCEEDED"

    task_runner.deliver("runs.refuse_job", job="42", reason="x")

    assert backend.patches == []


def test_a_rejected_job_that_has_a_run_by_now_is_left_alone(
    task_runner: TaskRunner, backend: Backend
) -> None:
    task_runner.deliver("test.deploy", **MESSAGE)

    task_runner.deliver("runs.refuse_job", job="42", reason="x")

    assert backend.patches == []


def test_failing_a_job_is_retried_until_the_backend_has_it(task_runner: TaskRunner, backend: Backend) -> None:
    backend.get_error = ServerError()
    kwargs: dict[str, Any] = {"job": "42", "reason": "x"}
    countdowns = []
    for _ in range(8):
        delivery = task_runner.deliver("runs.refuse_job", **kwargs)
        kwargs = delivery.kwargs
        countdowns.append(delivery.countdown)

    assert countdowns == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_rejected_job_is_not_opened_before_the_backend_knows(
    task_runner: TaskRunner, backend: Backend, redis: FakeRedis
) -> None:
    # Given a backend that has the end before we know that it has
    backend.when_patched = lambda: rejected_early.append(DeadLetters(redis).replay("42"))
    rejected_early: list[bool] = []

    # When somebody who sees it replays the letter at once
    task_runner.deliver("runs.refuse_job", job="42", reason="x")

    # Then that is rejected for a moment: the run would be ended as one that came before the rejection
    assert rejected_early == [False]
    assert DeadLetters(redis).replay("42")


def test_a_rejected_job_can_be_opened_after_its_worker_died(
    task_runner: TaskRunner, backend: Backend, redis: FakeRedis
) -> None:
    backend.patch_error = ServerError()
    again = task_runner.deliver("runs.refuse_job", job="42", reason="x")
    backend.status = "FAILED"  # It had come through after all.

    task_runner.deliver("runs.refuse_job", **again.kwargs)

    assert DeadLetters(redis).replay("42")
    assert backend.patches == []


def test_a_late_copy_of_a_rejection_leaves_an_opened_job(
    task_runner: TaskRunner, services: FakeServices, backend: Backend, redis: FakeRedis
) -> None:
    task_runner.deliver("runs.refuse_job", job="42", reason="x")
    DeadLetters(redis).replay("42")

    task_runner.deliver("runs.refuse_job", job="42", reason="x")

    assert begun(task_runner, services)
    assert len(backend.patches) == 1


def test_one_worker_at_a_time_fails_a_rejected_job(
    task_runner: TaskRunner, backend: Backend, redis: FakeRedis
) -> None:
    redis.set(lock_key("42", "runs.refuse_job"), "another")

    assert task_runner.deliver("runs.refuse_job", job="42", reason="x").ended == "retried"
    assert backend.patches == []


def begun(task_runner: TaskRunner, services: FakeServices) -> bool:
    task_runner.deliver("test.deploy", **MESSAGE)
    return begin_run(DEPLOY.typed(services.runs.store.load("42")), services)


def test_a_replay_opens_a_rejected_job_again(
    task_runner: TaskRunner, services: FakeServices, backend: Backend, redis: FakeRedis
) -> None:
    task_runner.deliver("runs.refuse_job", job="42", reason="x")
    assert DeadLetters(redis).replay("42")

    assert begun(task_runner, services)


def test_another_message_of_a_rejected_job_starts_nothing(
    task_runner: TaskRunner, services: FakeServices, backend: Backend
) -> None:
    task_runner.deliver("runs.refuse_job", job="42", reason="x")

    assert not begun(task_runner, services)


def test_a_rejected_job_is_forgotten_with_its_last_letter(redis: FakeRedis) -> None:
    # Given two wrong messages of a job that was set FAILED, and one of another job
    letters = DeadLetters(redis)
    for kwargs in ({"job": 42}, {"job": "42", "agent": 1}, {"job": 7}):
        letters.add("deploy", [[], kwargs], "wrong")
        letters.mark_rejected(str(kwargs["job"]))
    first, second, _ = letters.all()

    # Then the job may be opened while there is a letter of it
    assert letters.drop(first.id)
    assert letters.is_rejected("42")
    assert letters.drop(second.id)
    assert not letters.drop(second.id)
    assert not letters.is_rejected("42")
    assert letters.is_rejected("7")


def test_a_replayed_job_is_not_forgotten_with_its_letter(task_runner: TaskRunner, redis: FakeRedis) -> None:
    letters = DeadLetters(redis)
    letters.add("deploy", [[], {"job": 42}], "wrong")
    task_runner.deliver("runs.refuse_job", job="42", reason="wrong")
    (letter,) = letters.all()
    letters.replay("42")

    letters.drop(letter.id)

    assert letters.is_replayed("42")


def test_a_replay_opens_its_job_also_when_redelivered(
    task_runner: TaskRunner, services: FakeServices, redis: FakeRedis
) -> None:
    task_runner.deliver("runs.refuse_job", job="42", reason="x")
    DeadLetters(redis).replay("42")

    assert begun(task_runner, services)
    assert begin_run(DEPLOY.typed(services.runs.store.load("42")), services)


def test_job_that_failed_for_another_reason_is_not_opened(
    task_runner: TaskRunner, services: FakeServices, backend: Backend
) -> None:
    backend.status = "FAILED"

    assert not begun(task_runner, services)


def test_a_job_that_ended_before_the_rejection_is_not_opened(
    task_runner: TaskRunner, services: FakeServices, backend: Backend, redis: FakeRedis
) -> None:
    backend.status = "FAILED"
    task_runner.deliver("runs.refuse_job", job="42", reason="x")

    assert not DeadLetters(redis).replay("42")
    assert not begun(task_runner, services)


@pytest.fixture
def lost(services: FakeServices, monkeypatch: pytest.MonkeyPatch) -> RejectedMessage:
    """A message of a step that no worker knew."""
    monkeypatch.setattr("worker.workflow.rejected_jobs.services", lambda: services)
    kwargs = {"job": "42"}
    return RejectedMessage("deploy.newer", json.dumps([[], kwargs, {}]), UNKNOWN_STEP, "m1", kwargs)


def test_age_of_an_unknown_step_counts_from_its_first_delivery(lost: RejectedMessage, clock: Clock) -> None:
    assert seconds_unknown(message_id="m1") < 5
    clock.forward(3_600)
    assert 3_600 <= seconds_unknown(message_id="m1") < 3_605
    assert seconds_unknown(message_id="m2") < 5


@pytest.mark.parametrize(("idle", "status"), [(0, "PENDING"), (90_000, "FAILED")])
def test_run_that_stands_at_an_unknown_step_ends_failed(
    task_runner: TaskRunner, redis: FakeRedis, clock: Clock, lost: RejectedMessage, idle: float, status: str
) -> None:
    # Given a run that has not changed for so long
    task_runner.deliver("test.deploy", **MESSAGE)
    clock.forward(idle)

    # When a step of it is given up that no worker knew
    reject_undelivered(lost)

    # Then it is a dead letter, and the run ends if it stands still
    assert [letter["reason"] for letter in letters(redis)] == [UNKNOWN_STEP]
    assert redis.hget(job_key("42"), "status") == status


def test_the_latest_letters_are_read_by_few(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given more letters than are read at once, which may all be large
    for number in range(25):
        DeadLetters(redis).add("deploy", "{}", str(number))
    read: list[int] = []
    xrevrange = redis.xrevrange

    def counted(*args: Any, **options: Any) -> Any:
        found = xrevrange(*args, **options)
        read.append(len(found))
        return found

    monkeypatch.setattr(redis, "xrevrange", counted)

    # When the latest ones are asked for
    latest = DeadLetters(redis).latest(23)

    # Then they come, the last one first, and few are in memory at a time
    assert [letter.reason for letter in latest] == [str(number) for number in range(24, 1, -1)]
    assert max(read) <= 10
