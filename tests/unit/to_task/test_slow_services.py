"""A backend or a pre-processor that is busy: every good task is annotated, later, and none fails."""

from collections.abc import Callable

import pytest

from tests.unit.conftest import Clock
from tests.unit.to_task.world import JOB, World
from worker.platform import ClientConnectionError, HTTPError, RateLimitError, ServerError
from worker.runs.model import Continue, Reschedule
from worker.testing.faults import RateLimiter, failing_share
from worker.to_task.annotate import MAX_STUCK_SECONDS
from worker.to_task.steps import FINALIZE

Make = Callable[..., World]


@pytest.mark.timeout(90)
@pytest.mark.parametrize("retry_after", [None, 1.0], ids=["without Retry-After", "with Retry-After"])
def test_five_requests_a_second_annotate_every_task(make_world: Make, retry_after: float | None) -> None:
    # Given a backend that admits five requests a second
    world = make_world(8, chunk=100)
    world.collect()
    world.limit_requests()
    limiter = world.backend.faults.rule = RateLimiter(5, retry_after=retry_after)

    # When the chunk is delivered until it is done
    outcome = world.annotate_in_time(0)

    # Then every task was written once, and few requests were rejected for each that was admitted
    assert outcome == Continue(FINALIZE)
    assert sorted(world.backend.annotated) == list(range(1, 9))
    assert (world.record()["success"], world.record()["failed"]) == ("8", "0")
    assert limiter.rejected < 60


@pytest.mark.timeout(90)
def test_503_to_two_of_five_requests_fails_no_task(make_world: Make) -> None:
    world = make_world(12, chunk=100)
    world.collect()
    world.limit_requests()
    world.backend.faults.rule = failing_share(0.4)

    assert world.annotate_in_time(0) == Continue(FINALIZE)
    assert (world.record()["success"], world.record()["failed"]) == ("12", "0")


@pytest.mark.timeout(90)
@pytest.mark.parametrize("status", [302, 522, 529])
def test_what_stands_before_the_backend_fails_no_task(make_world: Make, status: int) -> None:
    # Given a gateway that answers a few requests itself, such as with a redirect to a page about maintenance
    world = make_world(6, chunk=100)
    world.collect()
    world.limit_requests()
    errors = [ServerError("", status) if status >= 500 else HTTPError("", status) for _ in range(4)]
    world.backend.faults.rule = lambda call: errors.pop() if errors and call == "get_task" else None

    assert world.annotate_in_time(0) == Continue(FINALIZE)
    assert (world.record()["success"], world.record()["failed"]) == ("6", "0")
    assert errors == []


def test_a_permanent_redirect_is_the_runs_failure(make_world: Make) -> None:
    world = make_world(3, chunk=100)
    world.collect()
    world.backend.faults.rule = lambda call: HTTPError("301", 301) if call == "get_task" else None

    with pytest.raises(HTTPError):
        world.annotate_in_time(0)
    assert world.record()["failed"] == "0"


@pytest.mark.timeout(90)
def test_a_pre_processor_that_sheds_load_fails_no_task(by_inference: Make) -> None:
    world = by_inference(12, batch_size=4)
    world.collect()
    world.limit_requests()
    shed = failing_share(0.4)
    world.backend.faults.rule = lambda call: shed(call) if call == "run_plugin" else None

    for chunk in (0, 1):
        world.annotate_in_time(chunk)
    assert (world.record()["success"], world.record()["failed"]) == ("12", "0")


def test_a_chunk_holds_no_thread_until_retry_after(make_world: Make) -> None:
    # Given a backend that asked to be left alone
    world = make_world(40, chunk=100)
    world.collect()
    world.limit_requests()
    world.backend.faults.fail("get_task", RateLimitError(retry_after=120), key=1, times=1)
    assert world.annotate(0) == Reschedule(120, is_asked_for=True)
    sent = world.backend.faults.calls["get_task"]

    # When the chunk is delivered before that
    outcome = world.annotate(0)

    # Then it is rescheduled for the seconds that are left, and nothing was sent
    assert isinstance(outcome, Reschedule)
    assert 100 < outcome.countdown <= 120
    assert world.backend.faults.calls["get_task"] == sent


def test_the_log_says_once_that_the_backend_is_slow(make_world: Make) -> None:
    world = make_world(30, chunk=10)
    world.collect()
    world.backend.faults.fail("get_task", RateLimitError(), key=1, times=5)
    world.backend.faults.fail("get_task", RateLimitError(), key=12, times=5)

    world.annotate_fully(0)
    world.annotate_fully(1)

    said = [entry["data"]["content"] for entry in world.runs.events.pop_messages(JOB, 100)]
    assert len([text for text in said if text.startswith("The backend is slow (")]) == 1


def test_a_question_that_is_answered_with_later_ends_nothing(make_world: Make) -> None:
    # Given a backend that loses connections, and answers the question whether it is there with 429
    world = make_world(2)
    world.collect()
    world.backend.faults.fail("get_task", ClientConnectionError(), times=2)
    world.backend.faults.fail("get_project", RateLimitError(retry_after=60), times=1)

    assert world.annotate(0) == Reschedule(60, is_asked_for=True)
    assert world.annotate(0) == Continue(FINALIZE)


def test_a_task_that_alone_is_put_off_for_a_day_fails(make_world: Make, clock: Clock) -> None:
    # Given a task that alone is always answered 503
    world = make_world(3)
    world.collect()
    world.backend.faults.fail("get_task", RateLimitError("503 Service Unavailable", 503), key=2)
    assert isinstance(world.annotate(0), Reschedule)
    clock.forward(MAX_STUCK_SECONDS - 60)
    assert isinstance(world.annotate(0), Reschedule)
    assert (world.record()["success"], world.record()["failed"]) == ("2", "0")

    # When a day has passed in which nothing else was done, then it fails, and the run goes on to its end
    clock.forward(120)
    assert world.annotate(0) == Continue(FINALIZE)
    (failure,) = world.ledger.failures()
    assert failure.task_id == 2
    assert "for a day: " in failure.error


def test_no_task_fails_while_the_backend_does_not_answer(make_world: Make, clock: Clock) -> None:
    world = make_world(2)
    world.collect()
    world.backend.faults.fail("get_task", RateLimitError("503 Service Unavailable", 503))
    world.backend.faults.fail("get_project", RateLimitError("503 Service Unavailable", 503))
    world.annotate(0)
    clock.forward(2 * MAX_STUCK_SECONDS)

    assert isinstance(world.annotate(0), Reschedule)
    assert (world.record()["success"], world.record()["failed"]) == ("0", "0")


def test_the_day_begins_anew_with_each_task_that_is_done(make_world: Make, clock: Clock) -> None:
    world = make_world(3)
    world.collect()
    world.backend.faults.fail("get_task", RateLimitError("503 Service Unavailable", 503), key=2)
    world.backend.faults.fail("get_task", RateLimitError("503 Service Unavailable", 503), key=3, times=1)
    world.annotate(0)
    clock.forward(2 * MAX_STUCK_SECONDS)

    # When another one is done that was put off, too
    assert isinstance(world.annotate(0), Reschedule)

    # Then the last one has its day
    assert isinstance(world.annotate(0), Reschedule)
    assert (world.record()["success"], world.record()["failed"]) == ("2", "0")
