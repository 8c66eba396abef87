"""Polls, and steps that are retried or end their run."""

from collections.abc import Callable
from typing import Any

import pytest
from fakeredis import FakeRedis
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.statuses import JobStatus
from tests.harness.in_process_worker import InProcessWorker, RecordingPublisher
from tests.unit.conftest import Clock
from tests.unit.runs.example_workflow import (
    CHUNK,
    FIRST,
    SECOND,
    VISIBILITY_TIMEOUT,
    StepCalls,
    advance,
    deliver,
)
from worker.platform import ClientConnectionError, RateLimitError, ServerError, register_secrets
from worker.runs.bulkhead import Bulkhead
from worker.runs.model import (
    Continue,
    End,
    Outcome,
    Reschedule,
    Run,
    RunFailedError,
    Suspend,
)
from worker.runs.publisher import STEP_HEADER
from worker.runs.runs import Runs, Timing
from worker.runs.shares.slots import Share, Slots, Taken
from worker.runs.shares.tenants import ShareLimits
from worker.workflow.delivery import MAX_USER_MESSAGE_CHARS, WAITED_HEADER, user_message

StepFunction = Callable[[Run], Outcome]


def test_poll_is_retried_with_the_next_generation(worker: InProcessWorker, run: Run) -> None:
    delivery = deliver(worker, FIRST, StepCalls(Reschedule(0.5)))

    assert (delivery.ended, delivery.countdown) == ("retried", 0.5)
    assert delivery.kwargs["generation"] == 1


def test_copy_of_an_older_poll_is_dropped(worker: InProcessWorker, run: Run) -> None:
    second = deliver(worker, FIRST, StepCalls(Reschedule(0.5)))
    calls = StepCalls()

    copy = deliver(worker, FIRST, calls)

    assert (copy.ended, calls) == ("acknowledged", [])
    assert deliver(worker, FIRST, calls, kwargs=second.kwargs).ended == "acknowledged"
    assert len(calls) == 1


def test_redelivered_poll_publishes_its_unpublished_successor(
    worker: InProcessWorker, run: Run, runs: Runs
) -> None:
    deliver(worker, FIRST)
    advance(runs, "42", FIRST.name, 0)  # and here its worker died
    calls = StepCalls()

    delivery = deliver(worker, FIRST, calls, redelivered=True)

    assert calls == []
    assert delivery.ended == "retried"
    assert delivery.kwargs["generation"] == 1


def test_redelivered_poll_ends_when_its_successor_has_begun(worker: InProcessWorker, run: Run) -> None:
    second = deliver(worker, FIRST, StepCalls(Reschedule(0.5)))
    deliver(worker, FIRST, StepCalls(Reschedule(0.5)), kwargs=second.kwargs)

    # Generation 2 is announced and waits; generation 0 comes once more.
    third = deliver(worker, FIRST, redelivered=True)

    assert third.ended in {"acknowledged", "retried"}
    if third.ended == "retried":  # Nobody can know that 2 was published; its copy must not multiply.
        calls = StepCalls(Reschedule(0.5))
        deliver(worker, FIRST, calls, kwargs={"job": "42", "generation": 2})
        copy = deliver(worker, FIRST, calls, kwargs=third.kwargs)
        assert (copy.ended, len(calls)) == ("acknowledged", 1)


def test_poll_goes_on_when_the_answer_of_its_advance_is_lost(
    worker: InProcessWorker, run: Run, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce = runs.store.reschedule_step

    def lost(*args: Any) -> int:
        announce(*args)
        raise RedisConnectionError("the answer was lost")

    monkeypatch.setattr(runs.store, "reschedule_step", lost)
    delivery = deliver(worker, FIRST, StepCalls(Reschedule(0.5)))
    monkeypatch.undo()

    generations = []
    while delivery.ended == "retried" and len(generations) < 5:
        delivery = deliver(
            worker, FIRST, lambda run: generations.append(run.generation) or Suspend(), kwargs=delivery.kwargs
        )

    assert generations == [1]


def test_countdown_of_a_poll_has_a_maximum(worker: InProcessWorker, run: Run) -> None:
    assert deliver(worker, FIRST, StepCalls(Reschedule(3600))).countdown == VISIBILITY_TIMEOUT / 2


def test_countdown_of_a_successor_has_a_maximum(
    worker: InProcessWorker, run: Run, publisher: RecordingPublisher
) -> None:
    deliver(worker, FIRST, StepCalls(Continue(SECOND, countdown=3600)))

    assert publisher.published[0].countdown == VISIBILITY_TIMEOUT / 2


def test_poll_that_succeeded_counts_its_attempts_anew(worker: InProcessWorker, run: Run) -> None:
    delivery = deliver(worker, FIRST, StepCalls(Reschedule(1)), kwargs={"job": "42", "attempt": 9})

    assert delivery.kwargs["attempt"] == 0


def share_of_a_tenant(redis: FakeRedis) -> StepFunction:
    """A chunk that finds no slot of its tenant, on a broker that is not the Redis of the runs."""
    limits = ShareLimits(chunks=1)
    shares = Runs(redis, RecordingPublisher(), Timing(VISIBILITY_TIMEOUT), share_limits=limits).shares
    assert Slots(redis, Share.CHUNKS, 1).take("", "another chunk", "41") is Taken.HAS
    return lambda run: shares.take_chunk(run, CHUNK, {"chunk": 1})


def slot_of_the_bulkhead(redis: FakeRedis) -> StepFunction:
    """A step that finds no slot of its release."""
    full = Bulkhead(lambda: 4)
    return lambda _: full.run("release:echo@1.0.0", 0, lambda: Suspend(), lambda threads: 0)


@pytest.mark.parametrize("without_slot", [share_of_a_tenant, slot_of_the_bulkhead])
def test_a_step_without_a_slot_keeps_its_retries(
    worker: InProcessWorker, run: Run, redis: FakeRedis, without_slot: Callable[[FakeRedis], StepFunction]
) -> None:
    # Given a chunk that was retried for a dependency nine times
    kwargs = {"job": "42", "attempt": 9}

    # When its next delivery finds no slot
    delivery = deliver(
        worker, CHUNK, without_slot(redis), part="1", kwargs=kwargs, headers={WAITED_HEADER: 600.0}
    )

    # Then its message says so still, or it would be retried without end
    assert (delivery.ended, delivery.kwargs["generation"]) == ("retried", 1)
    assert (delivery.kwargs["attempt"], delivery.headers[WAITED_HEADER]) == (9, 600.0)


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
    worker: InProcessWorker, run: Run, runs: Runs, error: Exception, message: str
) -> None:
    delivery = deliver(worker, FIRST, StepCalls(error))

    assert delivery.ended == "acknowledged"
    assert runs.store.load("42").end == End(JobStatus.FAILED, {"error": message})


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_exceptions_text_without_end_is_cut(kind: type[Exception]) -> None:
    text = user_message(kind("y" * 1_000_000))

    assert (len(text), text[-2:]) == (MAX_USER_MESSAGE_CHARS, "y…")


def test_exceptions_text_is_cleaned(worker: InProcessWorker, run: Run, runs: Runs) -> None:
    register_secrets(["hush-hush-hush"])
    error = RuntimeError("call of https://x.example/a?token=abc failed: hush-hush-hush\nnext line")

    deliver(worker, FIRST, StepCalls(error))

    end = runs.store.load("42").end
    assert end is not None
    assert "hush" not in end.error
    assert "x.example" not in end.error
    assert "\n" not in end.error


def test_unavailable_dependency_delays_the_step_more_each_time(
    worker: InProcessWorker, run: Run, runs: Runs
) -> None:
    kwargs: dict[str, Any] = {"job": "42"}
    countdowns = []
    for _ in range(7):
        delivery = deliver(worker, FIRST, StepCalls(RateLimitError("away")), kwargs=kwargs)
        assert delivery.ended == "retried"
        countdowns.append(delivery.countdown)
        kwargs = delivery.kwargs

    assert countdowns == [1, 2, 4, 8, 16, 30, 30]
    assert runs.store.load("42").end is None


@pytest.mark.parametrize("visibility_timeout", [10.0, 60.0, 600.0])
def test_dependency_unavailable_for_an_hour_ends_the_run(
    redis: FakeRedis, publisher: RecordingPublisher, run: Run, visibility_timeout: float
) -> None:
    runs = Runs(redis, publisher, Timing(visibility_timeout))
    worker = InProcessWorker(runs)
    away = StepCalls(ServerError("away"))
    delivery = deliver(worker, FIRST, away, kwargs={"job": "42"})
    waited = 0.0
    while delivery.countdown:
        waited += delivery.countdown
        delivery = deliver(worker, FIRST, away, kwargs=delivery.kwargs, headers=delivery.headers)

    assert 3600 <= waited < 4000
    assert runs.store.load("42").end == End(JobStatus.FAILED, {"error": "ServerError: away"})


def test_long_outage_does_not_use_up_the_hour_for_errors(
    worker: InProcessWorker, run: Run, runs: Runs
) -> None:
    # Given a step that has waited for hours for a service that was down
    unreachable = StepCalls(ClientConnectionError("away"))
    delivery = deliver(worker, FIRST, unreachable, kwargs={"job": "42"})
    for _ in range(300):
        delivery = deliver(worker, FIRST, unreachable, kwargs=delivery.kwargs, headers=delivery.headers)

    # When the service answers an error first as it comes up again
    error = StepCalls(ServerError("starting"))
    delivery = deliver(worker, FIRST, error, kwargs=delivery.kwargs, headers=delivery.headers)

    # Then the step waits on
    assert delivery.ended == "retried"
    assert runs.store.load("42").end is None


def test_run_is_not_overdue_while_a_service_asks_it_to_wait(
    worker: InProcessWorker, run: Run, runs: Runs, clock: Clock
) -> None:
    deliver(worker, FIRST, StepCalls(RateLimitError(retry_after=300)))

    clock.forward(299)

    assert runs.heartbeats.overdue() == []


@pytest.mark.parametrize("error", [RedisConnectionError("away"), OperationalError("away")])
def test_unavailable_infrastructure_does_not_end_the_run(
    worker: InProcessWorker, run: Run, runs: Runs, error: Exception
) -> None:
    delivery = deliver(worker, FIRST, StepCalls(error))

    assert (delivery.ended, delivery.countdown) == ("retried", 1.0)
    assert runs.store.load("42").end is None


def test_step_with_an_unpublished_successor_is_retried(
    worker: InProcessWorker, run: Run, publisher: RecordingPublisher
) -> None:
    publisher.broken = True

    assert deliver(worker, FIRST, StepCalls(Continue(SECOND))).ended == "retried"


def test_message_whose_retry_is_not_published_is_requeued(worker: InProcessWorker, run: Run) -> None:
    worker.broker_is_broken = True

    assert deliver(worker, FIRST, StepCalls(Reschedule(1))).ended == "requeued"


def test_message_is_requeued_when_redis_is_unavailable_too(
    worker: InProcessWorker, run: Run, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*args: Any) -> Any:
        raise RedisConnectionError("away")

    monkeypatch.setattr(runs.store, "claim_step", away)
    worker.broker_is_broken = True

    assert deliver(worker, FIRST).ended == "requeued"


def test_copies_made_while_a_dependency_hung_do_not_multiply(worker: InProcessWorker, run: Run) -> None:
    # Given a step that hung for so long that a copy of its message was delivered, and waits for the lock
    away = StepCalls(RateLimitError())
    first = deliver(worker, FIRST, away)
    copy = deliver(worker, FIRST, away, kwargs={"job": "42", "redelivered": True})
    assert (first.ended, copy.ended, len(away)) == ("retried", "retried", 1)

    # When the step goes on to wait for its dependency
    second = deliver(worker, FIRST, away, kwargs=first.kwargs)
    copy = deliver(worker, FIRST, away, kwargs=copy.kwargs)

    # Then the copy is gone, and the step is not
    assert (copy.ended, len(away)) == ("acknowledged", 2)
    calls = StepCalls()
    assert deliver(worker, FIRST, calls, kwargs=second.kwargs).ended == "acknowledged"
    assert len(calls) == 1
    assert second.kwargs["attempt"] == 2


def test_wait_that_a_service_asks_for_is_kept_whole(worker: InProcessWorker, run: Run) -> None:
    assert deliver(worker, FIRST, StepCalls(Reschedule(120, is_asked_for=True))).countdown == 120


@pytest.mark.parametrize(("asked", "countdown"), [(5, 5), (120, 120), (86_400, 300)])
def test_retry_after_is_the_countdown_of_a_step(
    worker: InProcessWorker, run: Run, asked: float, countdown: float
) -> None:
    delivery = deliver(worker, FIRST, StepCalls(RateLimitError(retry_after=asked)))

    assert delivery.countdown == countdown


def test_service_that_says_later_never_ends_the_run(worker: InProcessWorker, run: Run, runs: Runs) -> None:
    delivery = deliver(worker, FIRST, StepCalls(RateLimitError()), kwargs={"job": "42", "attempt": 1_000_000})

    assert delivery.ended == "retried"
    assert runs.store.load("42").end is None


@pytest.mark.parametrize("outcome", [Reschedule(0.5), ServerError()], ids=["poll", "failing dependency"])
def test_a_step_that_is_rescheduled_costs_two_calls_of_redis(
    worker: InProcessWorker, run: Run, outcome: Outcome | Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a step that was rescheduled before, so that Redis has the scripts
    delivery = deliver(worker, FIRST, StepCalls(outcome))
    calls: list[str] = []
    execute = FakeRedis.execute_command

    def counting(self: FakeRedis, *args: Any, **options: Any) -> Any:
        calls.append(args[0])
        return execute(self, *args, **options)

    monkeypatch.setattr(FakeRedis, "execute_command", counting)

    # When it is rescheduled once more
    delivery = deliver(worker, FIRST, StepCalls(outcome), kwargs=delivery.kwargs)

    # Then one call claims it, and one announces the next generation and releases the lock
    assert delivery.ended == "retried"
    assert calls == ["EVALSHA", "EVALSHA"]


def test_chunk_that_goes_on_at_once_does_so_behind_the_others(worker: InProcessWorker, run: Run) -> None:
    # Else large runs would keep small ones waiting.
    calls = StepCalls(Reschedule(0))
    delivery = deliver(worker, CHUNK, calls, part="7", headers={STEP_HEADER: True})

    assert (delivery.ended, delivery.countdown) == ("retried", 0)
    assert delivery.headers[STEP_HEADER] is True
