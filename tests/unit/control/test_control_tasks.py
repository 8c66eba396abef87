"""The doors: accepting, refusing, reporting, stopping."""

import json
from dataclasses import replace
from typing import Any

import pytest
from fakeredis import FakeRedis
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.channels import DEAD_LETTERS, job_key
from shared.messages import ToTaskMessage
from shared.statuses import JobStatus
from tests.unit.conftest import Clock
from tests.unit.control.control_helpers import Backend, Door, FakeServices
from tests.unit.runs.runs_helpers import RecordingSender
from worker.deploy.plan import DEPLOY
from worker.platform import NotFoundError, ServerError
from worker.runs import reporter
from worker.runs.keys import HEARTBEATS_KEY, lock_key
from worker.runs.model import End
from worker.workflow.dead_letters import DeadLetters
from worker.workflow.intake import begin_run

MESSAGE: dict[str, Any] = {"job": 42, "plugin": "digits@1.0.0", "agent": 1}


def letters(redis: FakeRedis) -> list[dict[str, str]]:
    return [fields for _, fields in redis.xrange(DEAD_LETTERS)]


# Accepting


def test_accepted_message_sends_the_first_step(door: Door, sender: RecordingSender) -> None:
    assert door.deliver("test.deploy", **MESSAGE).ended == "acknowledged"

    assert [(sent.name, sent.queue, sent.kwargs) for sent in sender.sent] == [
        ("deploy.initialize", "deploy", {"job": "42"})
    ]


@pytest.mark.parametrize(
    ("routing_key", "queue"),
    [
        ("deploy", "deploy"),
        ("deploy.3", "deploy.3"),
        ("deploy.x", "deploy"),
        ("jobs.deploy", "deploy"),
        ("to_task", "deploy"),
        (["x"], "deploy"),
        (None, "deploy"),
    ],
)
def test_steps_go_where_somebody_listens(
    door: Door, sender: RecordingSender, routing_key: object, queue: str
) -> None:
    door.routing_key = routing_key

    door.deliver("test.deploy", **MESSAGE)

    assert [sent.queue for sent in sender.sent] == [queue]


def test_message_that_breaks_what_takes_it_in_is_kept(
    door: Door, services: FakeServices, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise KeyError("unforeseen")

    monkeypatch.setattr(services.runs.store, "accept", broken)

    assert door.deliver("test.deploy", **MESSAGE).ended == "acknowledged"
    (letter,) = letters(redis)
    assert letter["reason"] == "it could not be taken in (KeyError)"


def test_message_with_half_a_character_is_kept(door: Door, redis: FakeRedis) -> None:
    door.deliver("test.deploy", **MESSAGE, params={"x": {"\ud800": 1}})

    (letter,) = letters(redis)
    assert "cannot be encoded" in letter["reason"]


def test_accepted_message_is_expected_to_give_signs_of_life(door: Door, redis: FakeRedis) -> None:
    door.deliver("test.deploy", **MESSAGE)

    assert redis.zrange(HEARTBEATS_KEY, 0, -1) == ["run:42"]


def test_entry_delivered_twice_sends_the_first_step_again_while_it_has_not_begun(
    door: Door, sender: RecordingSender
) -> None:
    door.deliver("test.deploy", **MESSAGE)
    door.deliver("test.deploy", **MESSAGE)

    assert len(sender.of("deploy.initialize")) == 2


def test_entry_delivered_twice_starts_nothing_once_the_run_has_begun(
    door: Door, services: FakeServices, sender: RecordingSender
) -> None:
    from worker.runs.model import Step

    door.deliver("test.deploy", **MESSAGE)
    services.runs.store.claim_step("42", Step("deploy.initialize", 10), "", "me", 5, 0, False)
    door.deliver("test.deploy", **MESSAGE)

    assert len(sender.of("deploy.initialize")) == 1


def test_entry_of_the_other_kind_starts_nothing_while_the_run_has_not_begun(
    door: Door, services: FakeServices, sender: RecordingSender
) -> None:
    # Given a run of `to_task` whose first step lies in the queue
    params = {"name": "n", "project": 1, "agent": 1, "target_specification_name": "label"}
    first = ToTaskMessage.model_validate({"job": 42, "plugin": "digits@1.0.0", "params": params})
    services.runs.store.accept(first, "to_task")

    # When a message of `deploy` names the same job
    door.deliver("test.deploy", **MESSAGE)

    # Then no step of a deployment is sent for it
    assert sender.sent == []
    assert services.runs.store.load("42").end is None


def test_entry_of_an_ended_run_publishes_only_the_report(
    door: Door, services: FakeServices, sender: RecordingSender
) -> None:
    door.deliver("test.deploy", **MESSAGE)
    services.runs.store.finish("42", End(JobStatus.FAILED, {"error": "x"}))
    sender.sent.clear()

    door.deliver("test.deploy", **MESSAGE)

    assert [sent.name for sent in sender.sent] == ["runs.report"]


def test_entry_comes_back_when_redis_is_away(
    door: Door, services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise RedisConnectionError("away")

    monkeypatch.setattr(services.runs.store, "accept", away)

    delivery = door.deliver("test.deploy", **MESSAGE)

    assert (delivery.ended, delivery.kwargs) == ("again", MESSAGE)


def test_entry_stays_with_the_broker_when_nothing_can_be_published(
    door: Door, sender: RecordingSender
) -> None:
    sender.broken = door.broken = True

    assert door.deliver("test.deploy", **MESSAGE).ended == "requeued"


def test_entry_comes_back_when_the_plugin_store_is_away(door: Door, services: FakeServices) -> None:
    services.store.error = OSError("stale file handle")

    assert door.deliver("test.deploy", **MESSAGE).ended == "again"


def test_entry_whose_release_breaks_the_reader_is_refused(
    door: Door, services: FakeServices, redis: FakeRedis
) -> None:
    services.store.error = TypeError("a bug")

    assert door.deliver("test.deploy", **MESSAGE).ended == "acknowledged"
    assert letters(redis)[0]["reason"] == "TypeError: a bug"


def test_stop_that_came_first_ends_the_run_and_reports_it(
    door: Door, sender: RecordingSender, services: FakeServices
) -> None:
    door.deliver("stop", job=42)
    door.deliver("test.deploy", **MESSAGE)

    assert services.runs.store.has_ended("42")
    assert [sent.name for sent in sender.sent] == ["runs.report"]


# Refusing

WRONG: list[dict[str, Any]] = [
    {"job": 42, "plugin": "digits@1.0.0"},
    {**MESSAGE, "agent": "1"},
    {**MESSAGE, "colour": "red"},
    {**MESSAGE, "plugin": "nobody@1.0.0"},
    {**MESSAGE, "plugin": "../digits@1.0.0"},
    {**MESSAGE, "action": "fly"},
]


@pytest.mark.parametrize("kwargs", WRONG)
def test_wrong_message_is_kept_whole_and_its_job_told(
    door: Door, redis: FakeRedis, sender: RecordingSender, kwargs: dict[str, Any]
) -> None:
    assert door.deliver("test.deploy", **kwargs).ended == "acknowledged"

    (letter,) = letters(redis)
    assert letter["task"] == "test.deploy"
    assert json.loads(letter["body"]) == [[], kwargs]
    assert letter.keys() == {"task", "body", "reason", "time"}
    assert [(sent.name, sent.kwargs["reason"]) for sent in sender.sent] == [
        ("runs.refuse_job", letter["reason"])
    ]


def test_arguments_by_position_are_refused(door: Door, redis: FakeRedis) -> None:
    door.deliver("test.deploy", 42, "digits@1.0.0")

    assert json.loads(letters(redis)[0]["body"]) == [[42, "digits@1.0.0"], {}]


def test_reason_names_the_field_and_not_its_value(door: Door, redis: FakeRedis) -> None:
    door.deliver("test.deploy", **{**MESSAGE, "agent": "hush-hush"})

    reason = letters(redis)[0]["reason"]
    assert reason.startswith("agent: ")
    assert "hush" not in reason


def test_second_delivery_of_a_refused_message_is_kept_once(
    door: Door, redis: FakeRedis, sender: RecordingSender
) -> None:
    for _ in range(2):
        door.deliver("test.deploy", message_id="the-same", job=42)

    assert len(letters(redis)) == 1


def test_two_refused_messages_are_both_kept(door: Door, redis: FakeRedis) -> None:
    for _ in range(2):
        door.deliver("test.deploy", job=42)

    assert len(letters(redis)) == 2


def test_unreadable_job_is_not_told(door: Door, redis: FakeRedis, sender: RecordingSender) -> None:
    door.deliver("test.deploy", job={"a": 1})

    assert len(letters(redis)) == 1
    assert sender.sent == []


def test_known_run_is_not_harmed_by_a_wrong_second_message(door: Door, sender: RecordingSender) -> None:
    door.deliver("test.deploy", **MESSAGE)
    sender.sent.clear()

    door.deliver("test.deploy", job=42)

    assert sender.sent == []


def test_refusal_comes_back_when_redis_is_away(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise RedisConnectionError("away")

    monkeypatch.setattr("worker.workflow.dead_letters.DeadLetters.add", away)

    assert door.deliver("test.deploy", job=42).ended == "again"


def test_refused_job_ends_failed_with_the_reason(door: Door, backend: Backend) -> None:
    door.deliver("runs.refuse_job", job="42", reason="agent: Field required", tenant="acme")

    assert backend.patches == [{"status": JobStatus.FAILED, "result": {"error": "agent: Field required"}}]
    assert backend.tenants == ["acme"]


def test_refused_job_that_is_over_is_left_alone(door: Door, backend: Backend) -> None:
    backend.status = "SUCCEEDED"

    door.deliver("runs.refuse_job", job="42", reason="x")

    assert backend.patches == []


def test_refused_job_that_got_a_run_by_now_is_left_alone(door: Door, backend: Backend) -> None:
    door.deliver("test.deploy", **MESSAGE)

    door.deliver("runs.refuse_job", job="42", reason="x")

    assert backend.patches == []


def test_refusal_comes_back_until_the_backend_has_it(door: Door, backend: Backend) -> None:
    backend.get_error = ServerError()
    kwargs: dict[str, Any] = {"job": "42", "reason": "x"}
    countdowns = []
    for _ in range(8):
        delivery = door.deliver("runs.refuse_job", **kwargs)
        kwargs = delivery.kwargs
        countdowns.append(delivery.countdown)

    assert countdowns == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_refused_job_cannot_be_opened_again_before_the_backend_was_told(
    door: Door, backend: Backend, redis: FakeRedis
) -> None:
    # Given a backend that has the end before we know that it has
    backend.when_patched = lambda: refused_early.append(DeadLetters(redis).replay("42"))
    refused_early: list[bool] = []

    # When somebody who sees it replays the letter at once
    door.deliver("runs.refuse_job", job="42", reason="x")

    # Then that is refused for a moment: the run would be ended as one that came before the refusal
    assert refused_early == [False]
    assert DeadLetters(redis).replay("42")


def test_refused_job_whose_worker_died_before_it_knew_can_be_opened_again(
    door: Door, backend: Backend, redis: FakeRedis
) -> None:
    backend.patch_error = ServerError()
    again = door.deliver("runs.refuse_job", job="42", reason="x")
    backend.status = "FAILED"  # It had come through after all.

    door.deliver("runs.refuse_job", **again.kwargs)

    assert DeadLetters(redis).replay("42")
    assert backend.patches == []


def test_late_copy_of_a_refusal_leaves_an_opened_job_alone(
    door: Door, services: FakeServices, backend: Backend, redis: FakeRedis
) -> None:
    door.deliver("runs.refuse_job", job="42", reason="x")
    DeadLetters(redis).replay("42")

    door.deliver("runs.refuse_job", job="42", reason="x")

    assert begun(door, services)
    assert len(backend.patches) == 1


def test_refusal_has_one_teller(door: Door, backend: Backend, redis: FakeRedis) -> None:
    redis.set(lock_key("42", "runs.refuse_job"), "another")

    assert door.deliver("runs.refuse_job", job="42", reason="x").ended == "again"
    assert backend.patches == []


# Reports


@pytest.mark.parametrize("ended", [False, True])
def test_copies_of_a_report_that_came_while_the_backend_hung_do_not_multiply(
    door: Door, backend: Backend, services: FakeServices, clock: Clock, ended: bool
) -> None:
    # Given a report that the backend does not take, and a copy that was delivered meanwhile
    door.deliver("test.deploy", **MESSAGE)
    services.runs.schedule_report("42")
    if ended:
        services.runs.finish("42", End(JobStatus.SUCCEEDED, {"serve_application": 1}))
    backend.patch_error = ServerError()
    copy: dict[str, Any] = {"job": "42", "generation": 0}
    first = door.deliver("runs.report", **copy)
    assert first.ended == "again"

    # Then the copy dies, and the report does not
    assert door.deliver("runs.report", **copy).ended == "acknowledged"
    backend.patch_error = None
    clock.forward(2)
    assert door.deliver("runs.report", **first.kwargs).ended in ("acknowledged", "again")
    assert len(backend.patches) == 1


def test_a_report_whose_successor_never_went_out_goes_on_when_it_is_delivered_again(
    door: Door, backend: Backend, services: FakeServices
) -> None:
    door.deliver("test.deploy", **MESSAGE)
    services.runs.schedule_report("42")
    services.runs.generations.advance("42", "runs.report", 0)  # and here its worker died

    assert door.deliver("runs.report", job="42", redelivered=True).ended in ("acknowledged", "again")
    assert len(backend.patches) == 1


@pytest.mark.parametrize("locked", [False, True])
def test_a_redelivered_report_that_has_to_wait_goes_on_after_it(
    door: Door, backend: Backend, services: FakeServices, redis: FakeRedis, clock: Clock, locked: bool
) -> None:
    # Given a report whose worker died after it announced the next one, soon after a PATCH
    door.deliver("test.deploy", **MESSAGE)
    run = services.runs.store.load("42")
    services.runs.mark_running(run)
    door.deliver("runs.report", job="42")
    services.runs.set_progress(run, "deploy", 50)
    services.runs.generations.advance("42", "runs.report", 0)
    if locked:
        redis.set(lock_key("42", "runs.report"), "the dead one's")

    # When it is delivered again, and has to wait
    waiting = door.deliver("runs.report", job="42", redelivered=True)
    assert waiting.ended == "again"
    redis.delete(lock_key("42", "runs.report"))
    clock.forward(2)

    # Then it is not taken for an old copy when it is back (the broker says "redelivered" only once)
    door.deliver("runs.report", **{**waiting.kwargs, "redelivered": False})
    assert len(backend.patches) == 2


def test_a_new_report_of_a_run_is_not_taken_for_an_old_copy(
    door: Door, services: FakeServices, sender: RecordingSender
) -> None:
    door.deliver("test.deploy", **MESSAGE)
    services.runs.generations.advance("42", "runs.report", 0)
    services.runs.publish_report("42")
    assert sender.of("runs.report")[-1].kwargs == {"job": "42", "generation": 1}


# Reopening


def begun(door: Door, services: FakeServices) -> bool:
    door.deliver("test.deploy", **MESSAGE)
    return begin_run(DEPLOY.typed(services.runs.store.load("42")), services)


def test_replay_opens_a_refused_job_again(
    door: Door, services: FakeServices, backend: Backend, redis: FakeRedis
) -> None:
    door.deliver("runs.refuse_job", job="42", reason="x")
    assert DeadLetters(redis).replay("42")

    assert begun(door, services)


def test_another_message_of_a_refused_job_starts_nothing(
    door: Door, services: FakeServices, backend: Backend
) -> None:
    door.deliver("runs.refuse_job", job="42", reason="x")

    assert not begun(door, services)


def test_refused_job_is_forgotten_with_its_last_letter(redis: FakeRedis) -> None:
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


def test_replayed_job_is_not_forgotten_with_its_letter(door: Door, redis: FakeRedis) -> None:
    letters = DeadLetters(redis)
    letters.add("deploy", [[], {"job": 42}], "wrong")
    door.deliver("runs.refuse_job", job="42", reason="wrong")
    (letter,) = letters.all()
    letters.replay("42")

    letters.drop(letter.id)

    assert letters.is_replayed("42")


def test_replay_whose_first_step_is_delivered_twice_still_opens_the_job(
    door: Door, services: FakeServices, redis: FakeRedis
) -> None:
    door.deliver("runs.refuse_job", job="42", reason="x")
    DeadLetters(redis).replay("42")

    assert begun(door, services)
    assert begin_run(DEPLOY.typed(services.runs.store.load("42")), services)


def test_job_that_failed_for_another_reason_is_not_opened(
    door: Door, services: FakeServices, backend: Backend
) -> None:
    backend.status = "FAILED"

    assert not begun(door, services)


def test_job_that_was_over_before_the_refusal_is_not_opened(
    door: Door, services: FakeServices, backend: Backend, redis: FakeRedis
) -> None:
    backend.status = "FAILED"
    door.deliver("runs.refuse_job", job="42", reason="x")

    assert not DeadLetters(redis).replay("42")
    assert not begun(door, services)


# The first step


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_job_that_is_over_in_the_backend_starts_nothing(
    door: Door, services: FakeServices, backend: Backend, sender: RecordingSender, status: str
) -> None:
    backend.status = status

    assert not begun(door, services)
    assert sender.of("runs.report") == []
    assert services.redis.hget(job_key("42"), "status") == status
    assert services.redis.zcard(HEARTBEATS_KEY) == 0


def test_job_that_is_over_starts_nothing_also_at_the_second_look(
    door: Door, services: FakeServices, backend: Backend
) -> None:
    backend.status = "STOPPED"
    door.deliver("test.deploy", **MESSAGE)

    assert not begin_run(replace(DEPLOY.typed(services.runs.store.load("42")), is_retry=True), services)


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_job_that_is_not_over_starts(
    door: Door, services: FakeServices, backend: Backend, status: str
) -> None:
    backend.status = status

    assert begun(door, services)
    assert services.redis.hget(job_key("42"), "status") == "RUNNING"


def test_job_is_running_although_the_first_report_was_never_published(
    door: Door, services: FakeServices, sender: RecordingSender
) -> None:
    # Given a first step that ended (the process died, the broker was away) as it published the report
    door.deliver("test.deploy", **MESSAGE)
    sender.broken = True
    with pytest.raises(OperationalError):
        begin_run(DEPLOY.typed(services.runs.store.load("42")), services)
    sender.broken = False

    # When it is delivered again
    assert begin_run(replace(DEPLOY.typed(services.runs.store.load("42")), is_retry=True), services)

    # Then the report is out, at once
    assert len(sender.of("runs.report")) == 1


def test_job_that_the_backend_does_not_know_starts(
    door: Door, services: FakeServices, backend: Backend
) -> None:
    backend.get_error = NotFoundError()

    assert begun(door, services)


# Reporting


def test_report_goes_out_and_ends(door: Door, services: FakeServices, backend: Backend) -> None:
    begun(door, services)

    assert door.deliver("runs.report", job="42").ended == "acknowledged"
    assert backend.patches[0]["status"] == JobStatus.RUNNING


def test_report_has_one_sender(
    door: Door, services: FakeServices, backend: Backend, redis: FakeRedis
) -> None:
    begun(door, services)
    redis.set(lock_key("42", "runs.report"), "another")

    delivery = door.deliver("runs.report", job="42")

    assert delivery.ended == "again"
    assert backend.patches == []


@pytest.mark.parametrize("end", [None, End(JobStatus.SUCCEEDED, {})], ids=["progress", "end"])
def test_report_whose_sender_was_suspended_and_replaced_says_nothing_after_the_end(
    door: Door,
    services: FakeServices,
    backend: Backend,
    redis: FakeRedis,
    monkeypatch: pytest.MonkeyPatch,
    end: End | None,
) -> None:
    # Given a report whose sender is suspended until another has reported the end
    begun(door, services)
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
        reporter.report_run("42", runs, backend)
        redis.delete(lock_key("42", "runs.report"))
        return found

    monkeypatch.setattr(runs.progress, "snapshot", slow)

    # When it goes on
    again = door.deliver("runs.report", job="42")
    while again.ended == "again":
        again = door.deliver("runs.report", **again.kwargs)

    # Then the backend hears nothing more
    assert [patch["status"] for patch in backend.patches] == [JobStatus.SUCCEEDED]


def test_report_of_an_end_comes_back_until_the_backend_has_it(
    door: Door, services: FakeServices, backend: Backend
) -> None:
    begun(door, services)
    services.runs.finish("42", End(JobStatus.FAILED, {"error": "x"}))
    backend.patch_error = ServerError()
    kwargs: dict[str, Any] = {"job": "42"}
    countdowns = []
    for _ in range(200):
        delivery = door.deliver("runs.report", **kwargs)
        kwargs = delivery.kwargs
        countdowns.append(delivery.countdown)
    backend.patch_error = None

    assert countdowns[:8] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert door.deliver("runs.report", **kwargs).ended == "acknowledged"
    assert [patch["status"] for patch in backend.patches] == [JobStatus.FAILED]


def test_report_on_its_way_is_a_sign_of_life(
    door: Door, services: FakeServices, backend: Backend, clock: Clock
) -> None:
    begun(door, services)
    services.runs.finish("42", End(JobStatus.FAILED, {"error": "x"}))
    backend.patch_error = ServerError()
    clock.forward(60)

    door.deliver("runs.report", job="42", attempt=9)
    clock.forward(60)

    assert services.runs.heartbeats.overdue() == []


def test_report_comes_back_when_redis_is_away(
    door: Door, services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(door, services)

    def away(*_: Any) -> bool:
        raise RedisConnectionError("away")

    monkeypatch.setattr(services.runs.store, "is_reported", away)

    assert door.deliver("runs.report", job="42").ended == "again"


# Stopping


def test_stop_ends_a_run(door: Door, services: FakeServices, sender: RecordingSender) -> None:
    begun(door, services)

    door.deliver("stop", job=42)

    end = services.runs.store.load("42").end
    assert end is not None
    assert end.status is JobStatus.STOPPED


def test_stop_whose_job_is_taken_in_meanwhile_ends_it_once(
    door: Door, services: FakeServices, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a job whose message is read, and its end reported, while the stop looks at the backend's job
    get_job, sent = backend.get_job, []

    def slow(job: str) -> dict[str, Any]:
        monkeypatch.setattr(backend, "get_job", get_job)
        found = backend.get_job(job)
        door.deliver("test.deploy", **MESSAGE)
        sent.append(door.deliver("runs.report", job="42"))
        return found

    monkeypatch.setattr(backend, "get_job", slow)

    # When the stop goes on
    door.deliver("stop", job=42)
    for report in sent:
        if report.ended == "again":
            door.deliver("runs.report", **report.kwargs)

    # Then the backend is told once
    assert [patch["status"] for patch in backend.patches] == [JobStatus.STOPPED]
    assert services.runs.store.is_reported("42")


def test_stop_over_which_a_worker_died_is_carried_out_when_its_lock_is_free(
    door: Door, services: FakeServices, backend: Backend
) -> None:
    # Given a stop that is delivered again at once, as RabbitMQ does, while the dead worker's lock still holds
    key, token = lock_key("42", "runs.report"), "of-the-dead"
    assert services.runs.locks.acquire(key, token)
    again = door.deliver("stop", job=42)
    assert again.ended == "again"
    assert backend.patches == []

    # When the lock is free
    services.redis.delete(key)
    door.deliver("stop", **again.kwargs)

    # Then the backend is told
    assert [patch["status"] for patch in backend.patches] == [JobStatus.STOPPED]


def test_stop_of_an_ended_run_changes_nothing(door: Door, services: FakeServices) -> None:
    begun(door, services)
    services.runs.finish("42", End(JobStatus.SUCCEEDED, {}))

    door.deliver("stop", job=42)

    end = services.runs.store.load("42").end
    assert end == End(JobStatus.SUCCEEDED, {})


@pytest.mark.parametrize("kwargs", [{}, {"job": "a b"}, {"job": 1, "colour": "red"}])
def test_wrong_stop_is_kept_and_harms_no_job(
    door: Door, redis: FakeRedis, sender: RecordingSender, kwargs: dict[str, Any]
) -> None:
    door.deliver("stop", **kwargs)

    assert letters(redis)[0]["task"] == "stop"
    assert sender.sent == []


def test_stop_by_position_is_kept(door: Door, redis: FakeRedis) -> None:
    door.deliver("stop", 42)

    assert len(letters(redis)) == 1


def test_stop_comes_back_when_redis_is_away(
    door: Door, services: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise RedisConnectionError("away")

    monkeypatch.setattr(services.runs.store, "remember_stop", away)

    assert door.deliver("stop", job=42).ended == "again"
