"""Steps: claimed, locked, run, and followed by their successors."""

import threading
from typing import Any

import pytest
from celery.exceptions import Retry
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.channels import job_key
from shared.statuses import JobStatus
from tests.harness.in_process_worker import InProcessWorker, RecordingPublisher
from tests.unit.runs.example_workflow import CHUNK, FIRST, SECOND, VISIBILITY_TIMEOUT, StepCalls, deliver
from worker.platform import RateLimitError
from worker.plugins import RunEndedError, check_run, run_end
from worker.runs.keys import heartbeats_key, lock_key, run_key
from worker.runs.model import (
    Continue,
    End,
    Finish,
    Outcome,
    Reschedule,
    Run,
    RunFailedError,
    Suspend,
)
from worker.runs.runs import Runs


def test_step_sees_its_run(worker: InProcessWorker, run: Run) -> None:
    calls = StepCalls()

    deliver(worker, FIRST, calls)

    assert [(seen.job, seen.step, seen.position, seen.is_retry) for seen in calls] == [
        ("42", "deploy.first", 10, False)
    ]


def test_step_that_began_before_is_a_retry(worker: InProcessWorker, run: Run) -> None:
    deliver(worker, FIRST)
    calls = StepCalls()

    deliver(worker, FIRST, calls, redelivered=True)

    assert calls[0].is_retry


@pytest.mark.parametrize("redelivered", [False, True])
def test_unclaimed_message_is_retried_as_it_came(
    worker: InProcessWorker, run: Run, redis: FakeRedis, redelivered: bool
) -> None:
    before = redis.hgetall(run_key("42"))
    worker.task.push_request(
        id="1",
        args=[],
        kwargs={"job": "42", "chunk": 7},
        called_directly=False,
        delivery_info={"exchange": "", "routing_key": "annotate", "redelivered": redelivered},
        retries_of_delivery=(retries := []),
    )

    with pytest.raises(Retry):
        worker.task.retry_unclaimed("42", 0.3)

    [(kwargs, options)] = retries
    assert (kwargs, options["countdown"]) == ({"job": "42", "chunk": 7, "redelivered": redelivered}, 0.3)
    assert redis.hgetall(run_key("42")) == before


def test_successor_is_published_to_the_runs_own_queue(
    worker: InProcessWorker, run: Run, publisher: RecordingPublisher
) -> None:
    delivery = deliver(worker, FIRST, StepCalls(Continue(SECOND, {"x": 1})))

    assert delivery.ended == "acknowledged"
    assert [(sent.name, sent.queue, sent.kwargs) for sent in publisher.published] == [
        ("deploy.second", "deploy", {"job": "42", "x": 1})
    ]


def test_successor_with_a_queue_of_its_own_goes_there(
    worker: InProcessWorker, run: Run, publisher: RecordingPublisher
) -> None:
    deliver(worker, FIRST, StepCalls(Continue(CHUNK)))

    assert publisher.published[0].queue == "annotate"


def test_publishing_the_successor_does_not_move_the_run_on(
    worker: InProcessWorker, run: Run, runs: Runs
) -> None:
    deliver(worker, FIRST, StepCalls(Continue(SECOND)))

    assert runs.store.load("42").step == "deploy.first"


def test_beginning_of_the_successor_moves_the_run_on(
    worker: InProcessWorker, run: Run, runs: Runs, redis: FakeRedis
) -> None:
    deliver(worker, FIRST, StepCalls(Continue(SECOND)))
    deliver(worker, SECOND)

    assert runs.store.load("42").step == "deploy.second"
    assert redis.hget(job_key("42"), "step") == "deploy.second"


def test_step_of_a_run_that_is_further_on_drops_out(worker: InProcessWorker, run: Run) -> None:
    deliver(worker, SECOND)
    calls = StepCalls()

    delivery = deliver(worker, FIRST, calls, redelivered=True)

    assert delivery.ended == "acknowledged"
    assert calls == []


def test_part_does_not_move_the_run_on(worker: InProcessWorker, run: Run, runs: Runs) -> None:
    deliver(worker, FIRST)

    deliver(worker, CHUNK, part="7")

    assert runs.store.load("42").step == "deploy.first"


def test_parts_have_locks_of_their_own(worker: InProcessWorker, run: Run, redis: FakeRedis) -> None:
    redis.set(lock_key("42", "to_task.chunk:1"), "somebody")
    calls = StepCalls()

    deliver(worker, CHUNK, calls, part="2")

    assert len(calls) == 1


def test_step_of_an_unknown_run_drops_out(worker: InProcessWorker) -> None:
    calls = StepCalls()

    assert deliver(worker, FIRST, calls).ended == "acknowledged"
    assert calls == []


def test_step_of_an_ended_run_publishes_the_report_again(
    worker: InProcessWorker, run: Run, runs: Runs, publisher: RecordingPublisher
) -> None:
    runs.store.finish("42", End(JobStatus.FAILED, {"error": "x"}))
    calls = StepCalls()

    delivery = deliver(worker, FIRST, calls)

    assert delivery.ended == "acknowledged"
    assert calls == []
    assert [sent.name for sent in publisher.published] == ["runs.report"]
    assert worker.ended_runs == ["42"]


def test_step_of_a_reported_run_publishes_nothing(
    worker: InProcessWorker, run: Run, runs: Runs, publisher: RecordingPublisher
) -> None:
    runs.store.finish("42", End(JobStatus.FAILED, {"error": "x"}))
    runs.store.mark_reported("42")

    deliver(worker, FIRST)

    assert publisher.published == []


@pytest.mark.parametrize(
    ("error", "ended"), [(RateLimitError("away"), "retried"), (ValueError("x"), "acknowledged")]
)
def test_failed_clean_up_is_retried_only_for_a_dependency(
    worker: InProcessWorker,
    run: Run,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    ended: str,
) -> None:
    def fail(job: str) -> None:
        raise error

    runs.store.finish("42", End(JobStatus.STOPPED, {}))
    monkeypatch.setattr(worker.task, "on_message_after_end", fail, raising=False)

    assert deliver(worker, FIRST).ended == ended


def test_step_whose_lock_is_held_is_retried(worker: InProcessWorker, run: Run, redis: FakeRedis) -> None:
    redis.set(lock_key("42", FIRST.name), "somebody")
    calls = StepCalls()

    delivery = deliver(worker, FIRST, calls)

    assert calls == []
    assert (delivery.ended, delivery.countdown) == ("retried", 1.0)


def test_message_retried_for_a_lock_keeps_its_arguments(
    worker: InProcessWorker, run: Run, redis: FakeRedis
) -> None:
    redis.set(lock_key("42", FIRST.name), "somebody")

    delivery = deliver(worker, FIRST, kwargs={"job": "42", "generation": 0, "attempt": 3})

    assert delivery.kwargs.items() >= {"job": "42", "generation": 0, "attempt": 3}.items()


def test_lock_is_held_while_the_function_works(worker: InProcessWorker, run: Run, redis: FakeRedis) -> None:
    held: list[Any] = []

    def look(run: Run) -> Outcome:
        held.append(redis.pttl(lock_key("42", FIRST.name)))
        return Suspend()

    deliver(worker, FIRST, look)

    assert 0 < held[0] <= VISIBILITY_TIMEOUT * 1000 / 2
    assert not redis.exists(lock_key("42", FIRST.name))


def test_lock_is_released_when_the_function_fails(
    worker: InProcessWorker, run: Run, redis: FakeRedis
) -> None:
    deliver(worker, FIRST, StepCalls(ValueError("x")))

    assert not redis.exists(lock_key("42", FIRST.name))


def test_lock_that_is_not_released_does_not_repeat_the_step(
    worker: InProcessWorker,
    run: Run,
    runs: Runs,
    publisher: RecordingPublisher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripts = runs.locks._scripts
    original = scripts.run

    def failing(name: str, *args: Any) -> Any:
        if name == "release":
            raise RedisConnectionError("away")
        return original(name, *args)

    monkeypatch.setattr(scripts, "run", failing)

    delivery = deliver(worker, FIRST, StepCalls(Continue(SECOND)))

    assert delivery.ended == "acknowledged"
    assert len(publisher.published) == 1


def test_finish_ends_the_run(
    worker: InProcessWorker, run: Run, runs: Runs, publisher: RecordingPublisher
) -> None:
    deliver(worker, FIRST, StepCalls(Finish(JobStatus.SUCCEEDED, {"serve_application": 7})))

    assert runs.store.load("42").end == End(JobStatus.SUCCEEDED, {"serve_application": 7})
    assert len(publisher.of("runs.report")) == 1


@pytest.mark.parametrize(
    "outcome", [Finish(JobStatus.SUCCEEDED, {}), RunFailedError("too late")], ids=["finish", "failure"]
)
def test_step_that_the_run_has_passed_meanwhile_does_not_end_it(
    worker: InProcessWorker, run: Run, runs: Runs, publisher: RecordingPublisher, outcome: Outcome | Exception
) -> None:
    # Given a step during which the run's next step begins
    def slow(_: Run) -> Outcome:
        deliver(worker, SECOND)
        return StepCalls(outcome)(_)

    # When it comes to an end
    assert deliver(worker, FIRST, slow).ended == "acknowledged"

    # Then the run goes on, and its own end is reported
    assert runs.store.load("42").end is None
    assert publisher.of("runs.report") == []
    deliver(worker, SECOND, StepCalls(Finish(JobStatus.SUCCEEDED, {"serve_application": 7})))
    assert len(publisher.of("runs.report")) == 1


def test_step_sends_a_heartbeat(worker: InProcessWorker, run: Run, redis: FakeRedis) -> None:
    now = redis.time()[0]

    deliver(worker, FIRST, StepCalls(Reschedule(20)))

    due = redis.zscore(heartbeats_key(), "run:42")
    assert due is not None
    assert due - now == pytest.approx(20 + VISIBILITY_TIMEOUT + 10, abs=2)


def test_two_deliveries_at_once_work_one_after_the_other(worker: InProcessWorker, run: Run) -> None:
    entered, leave = threading.Event(), threading.Event()
    at_once: list[str] = []

    def slow(run: Run) -> Outcome:
        at_once.append("first")
        entered.set()
        assert leave.wait(5)
        return Suspend()

    first = threading.Thread(target=deliver, args=(InProcessWorker(worker.runs), FIRST, slow))
    first.start()
    assert entered.wait(5)
    try:
        second = deliver(worker, FIRST, StepCalls(), redelivered=True)
    finally:
        leave.set()
        first.join(5)

    assert second.ended == "retried"
    assert at_once == ["first"]


def test_a_step_is_interrupted_by_the_end_of_its_run(
    worker: InProcessWorker, run: Run, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a step that waits for something that hangs
    monkeypatch.setattr(run_end, "CHECK_INTERVAL_SECONDS", 0.0)

    def hang(_: Run) -> Outcome:
        check_run()  # while the run goes on, it waits
        runs.finish("42", End(JobStatus.STOPPED, {"error": "stopped"}))
        check_run()
        raise AssertionError("the wait went on")

    # When the run is stopped, then the wait ends, and the step is retried
    delivery = worker.run_step(FIRST, hang)
    assert isinstance(delivery.error, RunEndedError)
    assert delivery.ended == "retried"

    # And its next delivery cleans up
    again = worker.run_step(FIRST, hang, kwargs=delivery.kwargs)
    assert (again.ended, again.error) == ("acknowledged", None)
    assert worker.ended_runs == ["42"]
    assert runs.store.load("42").end == End(JobStatus.STOPPED, {"error": "stopped"})


def test_a_redis_that_is_away_interrupts_no_step(
    worker: InProcessWorker, run: Run, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_end, "CHECK_INTERVAL_SECONDS", 0.0)

    def wait_for_plugin(_: Run) -> Outcome:
        with monkeypatch.context() as patch:
            patch.setattr(runs.store, "has_ended", unavailable)
            check_run()
        return Suspend()

    def unavailable(_: str) -> bool:
        raise RedisConnectionError

    assert worker.outcome_of(FIRST, wait_for_plugin) == Suspend()
