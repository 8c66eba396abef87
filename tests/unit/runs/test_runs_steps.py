"""Steps: begin, drop out, come back, move on."""

import threading
from dataclasses import replace
from typing import Any

import pytest
from celery.exceptions import Retry
from fakeredis import FakeRedis
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.channels import job_key
from shared.messages import ToTaskMessage
from shared.statuses import JobStatus
from tests.unit.runs.runs_helpers import (
    CHUNK,
    DEPLOY,
    FIRST,
    SECOND,
    VISIBILITY_TIMEOUT,
    Courier,
    FoundState,
    NeighbourAwayError,
    RecordingSender,
)
from worker.platform import register_secrets
from worker.runs.keys import HEARTBEATS_KEY, lock_key, run_key
from worker.runs.model import (
    ClaimStatus,
    Continue,
    End,
    Finish,
    Outcome,
    Reschedule,
    Run,
    RunFailedError,
    Suspend,
)
from worker.runs.runs import Runs, Timing
from worker.workflow.task import MAX_USER_MESSAGE_CHARS, user_message


class Calls(list[Run]):
    """A step's function that notes its calls."""

    def __init__(self, outcome: Outcome | Exception | None = None) -> None:
        self.outcome = outcome or Suspend()

    def __call__(self, run: Run) -> Outcome:
        self.append(run)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def test_step_sees_its_run(courier: Courier, run: Run) -> None:
    calls = Calls()

    courier.deliver(FIRST, calls)

    assert [(seen.job, seen.step, seen.position, seen.is_retry) for seen in calls] == [
        ("42", "deploy.first", 10, False)
    ]


def test_step_that_began_before_is_told(courier: Courier, run: Run) -> None:
    courier.deliver(FIRST)
    calls = Calls()

    courier.deliver(FIRST, calls, redelivered=True)

    assert calls[0].is_retry


@pytest.mark.parametrize("redelivered", [False, True])
def test_who_comes_back_unbegun_is_delivered_as_it_came(
    courier: Courier, run: Run, redis: FakeRedis, redelivered: bool
) -> None:
    before = redis.hgetall(run_key("42"))
    courier.task.push_request(
        id="1",
        args=[],
        kwargs={"job": "42", "chunk": 7},
        called_directly=False,
        delivery_info={"exchange": "", "routing_key": "annotate", "redelivered": redelivered},
    )

    with pytest.raises(Retry):
        courier.task.retry_unclaimed("42", 0.3)

    [(kwargs, options)] = courier.published
    assert (kwargs, options["countdown"]) == ({"job": "42", "chunk": 7, "redelivered": redelivered}, 0.3)
    assert redis.hgetall(run_key("42")) == before


def test_successor_is_published_to_the_runs_own_queue(
    courier: Courier, run: Run, sender: RecordingSender
) -> None:
    delivery = courier.deliver(FIRST, Calls(Continue(SECOND, {"x": 1})))

    assert delivery.ended == "acknowledged"
    assert [(sent.name, sent.queue, sent.kwargs) for sent in sender.sent] == [
        ("deploy.second", "deploy", {"job": "42", "x": 1})
    ]


def test_successor_with_a_queue_of_its_own_goes_there(
    courier: Courier, run: Run, sender: RecordingSender
) -> None:
    courier.deliver(FIRST, Calls(Continue(CHUNK)))

    assert sender.sent[0].queue == "annotate"


def test_publishing_the_successor_does_not_move_the_run_on(courier: Courier, run: Run, runs: Runs) -> None:
    courier.deliver(FIRST, Calls(Continue(SECOND)))

    assert runs.store.load("42").step == "deploy.first"


def test_beginning_of_the_successor_moves_the_run_on(
    courier: Courier, run: Run, runs: Runs, redis: FakeRedis
) -> None:
    courier.deliver(FIRST, Calls(Continue(SECOND)))
    courier.deliver(SECOND)

    assert runs.store.load("42").step == "deploy.second"
    assert redis.hget(job_key("42"), "step") == "deploy.second"


def test_step_of_a_run_that_is_further_on_drops_out(courier: Courier, run: Run) -> None:
    courier.deliver(SECOND)
    calls = Calls()

    delivery = courier.deliver(FIRST, calls, redelivered=True)

    assert delivery.ended == "acknowledged"
    assert calls == []


def test_part_does_not_move_the_run_on(courier: Courier, run: Run, runs: Runs) -> None:
    courier.deliver(FIRST)

    courier.deliver(CHUNK, part="7")

    assert runs.store.load("42").step == "deploy.first"


def test_parts_have_locks_of_their_own(courier: Courier, run: Run, redis: FakeRedis) -> None:
    redis.set(lock_key("42", "to_task.chunk:1"), "somebody")
    calls = Calls()

    courier.deliver(CHUNK, calls, part="2")

    assert len(calls) == 1


def test_step_of_an_unknown_run_drops_out(courier: Courier) -> None:
    calls = Calls()

    assert courier.deliver(FIRST, calls).ended == "acknowledged"
    assert calls == []


def test_step_of_an_ended_run_publishes_the_report_again(
    courier: Courier, run: Run, runs: Runs, sender: RecordingSender
) -> None:
    runs.store.finish("42", End(JobStatus.FAILED, {"error": "x"}))
    calls = Calls()

    delivery = courier.deliver(FIRST, calls)

    assert delivery.ended == "acknowledged"
    assert calls == []
    assert [sent.name for sent in sender.sent] == ["runs.report"]
    assert courier.after_end == ["42"]


def test_step_of_a_reported_run_publishes_nothing(
    courier: Courier, run: Run, runs: Runs, sender: RecordingSender
) -> None:
    runs.store.finish("42", End(JobStatus.FAILED, {"error": "x"}))
    runs.store.mark_reported("42")

    courier.deliver(FIRST)

    assert sender.sent == []


@pytest.mark.parametrize(
    ("error", "ended"), [(NeighbourAwayError("away"), "again"), (ValueError("x"), "acknowledged")]
)
def test_cleaning_up_that_fails_comes_back_only_for_a_neighbour(
    courier: Courier, run: Run, runs: Runs, monkeypatch: pytest.MonkeyPatch, error: Exception, ended: str
) -> None:
    def fail(job: str) -> None:
        raise error

    runs.store.finish("42", End(JobStatus.STOPPED, {}))
    monkeypatch.setattr(courier.task, "on_message_after_end", fail, raising=False)

    assert courier.deliver(FIRST).ended == ended


# Locks


def test_who_finds_the_lock_held_comes_back(courier: Courier, run: Run, redis: FakeRedis) -> None:
    redis.set(lock_key("42", FIRST.name), "somebody")
    calls = Calls()

    delivery = courier.deliver(FIRST, calls)

    assert calls == []
    assert (delivery.ended, delivery.countdown) == ("again", 1.0)


def test_message_that_comes_back_for_a_lock_keeps_its_arguments(
    courier: Courier, run: Run, redis: FakeRedis
) -> None:
    redis.set(lock_key("42", FIRST.name), "somebody")

    delivery = courier.deliver(FIRST, kwargs={"job": "42", "generation": 0, "attempt": 3})

    assert delivery.kwargs.items() >= {"job": "42", "generation": 0, "attempt": 3}.items()


def test_lock_is_held_while_the_function_works_and_given_back(
    courier: Courier, run: Run, redis: FakeRedis
) -> None:
    held: list[Any] = []

    def look(run: Run) -> Outcome:
        held.append(redis.pttl(lock_key("42", FIRST.name)))
        return Suspend()

    courier.deliver(FIRST, look)

    assert 0 < held[0] <= VISIBILITY_TIMEOUT * 1000 / 2
    assert not redis.exists(lock_key("42", FIRST.name))


def test_lock_is_given_back_when_the_function_fails(courier: Courier, run: Run, redis: FakeRedis) -> None:
    courier.deliver(FIRST, Calls(ValueError("x")))

    assert not redis.exists(lock_key("42", FIRST.name))


def test_lock_that_cannot_be_given_back_does_not_repeat_the_step(
    courier: Courier, run: Run, runs: Runs, sender: RecordingSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts = runs.locks._scripts
    original = scripts.run

    def failing(name: str, *args: Any) -> Any:
        if name == "release":
            raise RedisConnectionError("away")
        return original(name, *args)

    monkeypatch.setattr(scripts, "run", failing)

    delivery = courier.deliver(FIRST, Calls(Continue(SECOND)))

    assert delivery.ended == "acknowledged"
    assert len(sender.sent) == 1


# Polls


def test_poll_comes_back_with_the_next_generation(courier: Courier, run: Run) -> None:
    delivery = courier.deliver(FIRST, Calls(Reschedule(0.5)))

    assert (delivery.ended, delivery.countdown) == ("again", 0.5)
    assert delivery.kwargs["generation"] == 1


def test_copy_of_an_older_poll_dies(courier: Courier, run: Run) -> None:
    second = courier.deliver(FIRST, Calls(Reschedule(0.5)))
    calls = Calls()

    copy = courier.deliver(FIRST, calls)

    assert (copy.ended, calls) == ("acknowledged", [])
    assert courier.deliver(FIRST, calls, kwargs=second.kwargs).ended == "acknowledged"
    assert len(calls) == 1


def test_redelivered_poll_publishes_the_announced_one_that_never_went_out(
    courier: Courier, run: Run, runs: Runs
) -> None:
    courier.deliver(FIRST)
    runs.generations.advance("42", FIRST.name, 0)  # and here its worker died
    calls = Calls()

    delivery = courier.deliver(FIRST, calls, redelivered=True)

    assert calls == []
    assert delivery.ended == "again"
    assert delivery.kwargs["generation"] == 1


def test_redelivered_poll_dies_when_its_successor_has_begun(courier: Courier, run: Run) -> None:
    second = courier.deliver(FIRST, Calls(Reschedule(0.5)))
    courier.deliver(FIRST, Calls(Reschedule(0.5)), kwargs=second.kwargs)

    # Generation 2 is announced and waits; generation 0 comes once more.
    third = courier.deliver(FIRST, redelivered=True)

    assert third.ended in {"acknowledged", "again"}
    if third.ended == "again":  # Nobody can know that 2 went out; its copy must not multiply.
        calls = Calls(Reschedule(0.5))
        courier.deliver(FIRST, calls, kwargs={"job": "42", "generation": 2})
        copy = courier.deliver(FIRST, calls, kwargs=third.kwargs)
        assert (copy.ended, len(calls)) == ("acknowledged", 1)


def test_poll_whose_announcement_lost_its_answer_goes_on(
    courier: Courier, run: Run, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce = runs.generations.advance

    def lost(*args: Any) -> int:
        announce(*args)
        raise RedisConnectionError("the answer was lost")

    monkeypatch.setattr(runs.generations, "advance", lost)
    delivery = courier.deliver(FIRST, Calls(Reschedule(0.5)))
    monkeypatch.undo()

    generations = []
    while delivery.ended == "again" and len(generations) < 5:
        delivery = courier.deliver(
            FIRST, lambda run: generations.append(run.generation) or Suspend(), kwargs=delivery.kwargs
        )

    assert generations == [1]


def test_countdown_of_a_poll_never_exceeds_half_of_the_visibility_timeout(courier: Courier, run: Run) -> None:
    assert courier.deliver(FIRST, Calls(Reschedule(3600))).countdown == VISIBILITY_TIMEOUT / 2


def test_countdown_of_a_successor_never_exceeds_half_of_the_visibility_timeout(
    courier: Courier, run: Run, sender: RecordingSender
) -> None:
    courier.deliver(FIRST, Calls(Continue(SECOND, countdown=3600)))

    assert sender.sent[0].countdown == VISIBILITY_TIMEOUT / 2


def test_poll_that_succeeded_counts_its_attempts_anew(courier: Courier, run: Run) -> None:
    delivery = courier.deliver(FIRST, Calls(Reschedule(1)), kwargs={"job": "42", "attempt": 9})

    assert delivery.kwargs["attempt"] == 0


# Failures


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RunFailedError("No tasks found to annotate"), "No tasks found to annotate"),
        (RuntimeError("Serve deploy denied"), "Serve deploy denied"),
        (KeyError("model"), "KeyError: 'model'"),
        (ValueError(), "ValueError"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_exception_ends_the_run_failed(
    courier: Courier, run: Run, runs: Runs, error: Exception, message: str
) -> None:
    delivery = courier.deliver(FIRST, Calls(error))

    assert delivery.ended == "acknowledged"
    assert runs.store.load("42").end == End(JobStatus.FAILED, {"error": message})


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_exceptions_text_without_end_is_cut(kind: type[Exception]) -> None:
    text = user_message(kind("y" * 1_000_000))

    assert (len(text), text[-2:]) == (MAX_USER_MESSAGE_CHARS, "y…")


def test_exceptions_text_is_cleaned(courier: Courier, run: Run, runs: Runs) -> None:
    register_secrets(["hush-hush-hush"])
    error = RuntimeError("call of https://x.example/a?token=abc failed: hush-hush-hush\nnext line")

    courier.deliver(FIRST, Calls(error))

    end = runs.store.load("42").end
    assert end is not None
    assert "hush" not in end.error
    assert "x.example" not in end.error
    assert "\n" not in end.error


def test_neighbour_that_is_away_brings_the_step_back_later_each_time(
    courier: Courier, run: Run, runs: Runs
) -> None:
    kwargs: dict[str, Any] = {"job": "42"}
    countdowns = []
    for _ in range(7):
        delivery = courier.deliver(FIRST, Calls(NeighbourAwayError("away")), kwargs=kwargs)
        assert delivery.ended == "again"
        countdowns.append(delivery.countdown)
        kwargs = delivery.kwargs

    assert countdowns == [1, 2, 4, 8, 16, 30, 30]
    assert runs.store.load("42").end is None


@pytest.mark.parametrize("visibility_timeout", [10.0, 60.0])
def test_neighbour_that_stays_away_for_an_hour_ends_the_run(
    redis: FakeRedis, sender: RecordingSender, run: Run, visibility_timeout: float
) -> None:
    runs = Runs(redis, sender, Timing(visibility_timeout))
    courier = Courier(runs)
    kwargs: dict[str, Any] = {"job": "42"}
    waited = 0.0
    while (delivery := courier.deliver(FIRST, Calls(NeighbourAwayError("away")), kwargs=kwargs)).countdown:
        waited += delivery.countdown
        kwargs = delivery.kwargs

    assert 3000 < waited < 4000
    assert runs.store.load("42").end == End(JobStatus.FAILED, {"error": "NeighbourAwayError: away"})


@pytest.mark.parametrize("error", [RedisConnectionError("away"), OperationalError("away")])
def test_backbone_that_is_away_says_nothing_about_the_run(
    courier: Courier, run: Run, runs: Runs, error: Exception
) -> None:
    delivery = courier.deliver(FIRST, Calls(error))

    assert (delivery.ended, delivery.countdown) == ("again", 1.0)
    assert runs.store.load("42").end is None


def test_step_whose_successor_cannot_be_published_comes_back(
    courier: Courier, run: Run, sender: RecordingSender
) -> None:
    sender.broken = True

    assert courier.deliver(FIRST, Calls(Continue(SECOND))).ended == "again"


def test_message_that_cannot_be_published_again_stays_with_the_broker(courier: Courier, run: Run) -> None:
    courier.broken = True

    assert courier.deliver(FIRST, Calls(Reschedule(1))).ended == "requeued"


def test_message_stays_with_the_broker_when_redis_is_away_too(
    courier: Courier, run: Run, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: Any) -> Any:
        raise RedisConnectionError("away")

    monkeypatch.setattr(runs.store, "claim_step", away)
    courier.broken = True

    assert courier.deliver(FIRST).ended == "requeued"


def test_end_whose_report_cannot_be_published_is_kept_and_reported_by_the_next_delivery(
    courier: Courier, run: Run, runs: Runs, sender: RecordingSender
) -> None:
    sender.broken = True
    delivery = courier.deliver(FIRST, Calls(Finish(JobStatus.SUCCEEDED, {"a": 1})))
    assert delivery.ended == "again"

    sender.broken = False
    courier.deliver(FIRST, kwargs=delivery.kwargs)

    assert len(sender.of("runs.report")) == 1


def test_finish_ends_the_run(courier: Courier, run: Run, runs: Runs, sender: RecordingSender) -> None:
    courier.deliver(FIRST, Calls(Finish(JobStatus.SUCCEEDED, {"serve_application": 7})))

    assert runs.store.load("42").end == End(JobStatus.SUCCEEDED, {"serve_application": 7})
    assert len(sender.of("runs.report")) == 1


@pytest.mark.parametrize(
    "outcome", [Finish(JobStatus.SUCCEEDED, {}), RunFailedError("too late")], ids=["finish", "failure"]
)
def test_step_that_the_run_has_passed_meanwhile_does_not_end_it(
    courier: Courier, run: Run, runs: Runs, sender: RecordingSender, outcome: Outcome | Exception
) -> None:
    # Given a step during which the run's next step begins
    def slow(_: Run) -> Outcome:
        courier.deliver(SECOND)
        return Calls(outcome)(_)

    # When it comes to an end
    assert courier.deliver(FIRST, slow).ended == "acknowledged"

    # Then the run goes on, and its own end is reported
    assert runs.store.load("42").end is None
    assert sender.of("runs.report") == []
    courier.deliver(SECOND, Calls(Finish(JobStatus.SUCCEEDED, {"serve_application": 7})))
    assert len(sender.of("runs.report")) == 1


def test_step_is_a_sign_of_life(courier: Courier, run: Run, redis: FakeRedis) -> None:
    now = redis.time()[0]

    courier.deliver(FIRST, Calls(Reschedule(20)))

    due = redis.zscore(HEARTBEATS_KEY, "run:42")
    assert due is not None
    assert due - now == pytest.approx(20 + VISIBILITY_TIMEOUT + 10, abs=2)


def test_two_deliveries_at_once_work_one_after_the_other(courier: Courier, run: Run) -> None:
    entered, leave = threading.Event(), threading.Event()
    at_once: list[str] = []

    def slow(run: Run) -> Outcome:
        at_once.append("first")
        entered.set()
        assert leave.wait(5)
        return Suspend()

    first = threading.Thread(target=Courier(courier.runs).deliver, args=(FIRST, slow))
    first.start()
    assert entered.wait(5)
    try:
        second = courier.deliver(FIRST, Calls(), redelivered=True)
    finally:
        leave.set()
        first.join(5)

    assert second.ended == "again"
    assert at_once == ["first"]


def test_client_that_asks_twice_for_a_lock_has_it(runs: Runs, run: Run) -> None:
    asked = [runs.store.claim_step("42", FIRST, "", "me", 5, 0, False) for _ in range(2)]

    assert [begun.status for begun in asked] == [ClaimStatus.CLAIMED, ClaimStatus.CLAIMED]


def test_state_is_there_for_later_steps(courier: Courier, run: Run, runs: Runs) -> None:
    before = DEPLOY.typed(runs.store.load("42"))
    runs.store.update_state(before, replace(before.state, application={"id": 7}))
    calls = Calls()

    courier.deliver(SECOND, calls)

    assert calls[0].state == FoundState(application={"id": 7})


def test_step_of_another_workflow_fails_the_run(courier: Courier, runs: Runs, to_task: ToTaskMessage) -> None:
    runs.store.accept(to_task, "to_task")
    calls = Calls()

    courier.deliver(FIRST, calls)

    assert calls == []
    end = runs.store.load("42").end
    assert end == End(JobStatus.FAILED, {"error": "job 42 is a run of to_task, which has no such step"})


def test_run_key_is_private_and_the_record_public(courier: Courier, run: Run, redis: FakeRedis) -> None:
    assert set(redis.hgetall(job_key("42"))) == {
        "action", "plugin", "status", "step", "overall", "success", "failed", "total", "started", "updated",
        "error",
    }  # fmt: skip
    assert redis.exists(run_key("42"))


def test_copies_that_came_while_a_neighbour_hung_do_not_multiply(courier: Courier, run: Run) -> None:
    # Given a step that hung for so long that a copy of its message was delivered, and waits for the lock
    away = Calls(NeighbourAwayError())
    first = courier.deliver(FIRST, away)
    copy = courier.deliver(FIRST, away, kwargs={"job": "42", "redelivered": True})
    assert (first.ended, copy.ended, len(away)) == ("again", "again", 1)

    # When the step goes on to wait for its neighbour
    second = courier.deliver(FIRST, away, kwargs=first.kwargs)
    copy = courier.deliver(FIRST, away, kwargs=copy.kwargs)

    # Then the copy is gone, and the step is not
    assert (copy.ended, len(away)) == ("acknowledged", 2)
    calls = Calls()
    assert courier.deliver(FIRST, calls, kwargs=second.kwargs).ended == "acknowledged"
    assert len(calls) == 1
    assert second.kwargs["attempt"] == 2
