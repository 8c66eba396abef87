"""Runs come, wait, and leave."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from shared.statuses import JobStatus
from tests.unit.conftest import Clock
from tests.unit.pre_processor.room_helpers import NAME, FakeBackend, Hall
from tests.unit.runs.runs_helpers import RecordingSender
from worker.platform import (
    ClientConnectionError,
    ClientTimeoutError,
    MalformedResponseError,
    NotFoundError,
    ServerError,
    ValidationError,
)
from worker.pre_processor import decision as errors
from worker.pre_processor import dispatch as detection
from worker.pre_processor.dispatch import dispatch
from worker.pre_processor.poll import poll_backoff
from worker.pre_processor.serve_application import PreProcessor
from worker.pre_processor.waitlist import (
    AWAIT_READY,
    DETECT,
    DISPATCH,
    FETCH_TASKS,
    WaitlistName,
    recover_waitlist,
    wake,
)
from worker.runs.keys import HEARTBEATS_KEY, lock_key
from worker.runs.model import Continue, End, Finish, Reschedule, Run, Suspend
from worker.runs.reporter import stop_run
from worker.runs.runs import Timing
from worker.services import Services
from worker.to_task import steps as to_task


def test_a_running_pre_processor_is_not_waited_for(hall: Hall, api: FakeBackend) -> None:
    api.runs_now()
    hall.accept("1")
    assert hall.step(DETECT, "1", detection.detect) == Continue(FETCH_TASKS)
    expected = PreProcessor("digits", "1.0.0", api.release["config"], 1)
    assert hall.run("1").state.pre_processor == expected


def test_one_that_does_not_run_leads_to_the_room(hall: Hall, api: FakeBackend) -> None:
    hall.accept("1")
    assert hall.step(DETECT, "1", detection.detect) == Continue(DISPATCH)
    api.broken["list_serve_applications"] = MalformedResponseError()
    hall.accept("2")
    assert hall.step(DETECT, "2", detection.detect) == Continue(DISPATCH)


def test_another_release_that_runs_does_not_count(hall: Hall, api: FakeBackend) -> None:
    api.runs_now(data={"version": "2.0.0"})
    hall.accept("1")
    assert hall.step(DETECT, "1", detection.detect) == Continue(DISPATCH)


@pytest.mark.parametrize(
    "release", [{}, {"version": "1"}, {"version": "1", "config": []}, {"config": {"code": "x"}}]
)
def test_a_release_that_cannot_be_deployed_ends_the_run(
    hall: Hall, api: FakeBackend, release: object
) -> None:
    api.release = release
    hall.accept("1")
    assert isinstance(hall.step(DETECT, "1", detection.detect), Finish)


def test_from_dispatch_to_ready(hall: Hall, api: FakeBackend, sender: RecordingSender) -> None:
    hall.enter("1")
    assert hall.wait("1") == Suspend()
    body = {
        "agent": 1,
        "action": "deployment",
        "params": {"num_cpus": 1, "num_gpus": 0.1},
        "version": "1.0.0",
    }
    assert api.dispatched == [("digits", body)]
    first = sender.of(AWAIT_READY.name)
    assert [(sent.queue, sent.kwargs) for sent in first] == [("to_task", {"room": NAME.key, "generation": 1})]
    again = hall.poll()
    assert again is not None
    assert again.generation == 2
    assert 0 < again.countdown <= 1
    api.runs_now()
    assert hall.poll(2) is None
    assert hall.sent_on() == ["1"]
    assert hall.waiting() == []
    assert hall.services.redis.zscore(HEARTBEATS_KEY, NAME.member) is None


def test_a_hundred_at_once_dispatch_once(hall: Hall, api: FakeBackend, sender: RecordingSender) -> None:
    jobs = [str(number) for number in range(100)]
    for job in jobs:
        hall.enter(job)
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(hall.wait, jobs))
    assert len(api.dispatched) == 1
    assert len(sender.of(AWAIT_READY.name)) == 1
    assert sorted(hall.waiting()) == sorted(jobs)
    api.runs_now()
    assert hall.poll() is None
    assert sorted(hall.sent_on()) == sorted(jobs)


def test_a_crowd_leaves_in_turns(hall: Hall, api: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.pre_processor.poll.MAX_WAITERS_PER_POLL", 2)
    for job in "123":
        hall.enter(job)
        hall.wait(job)
    api.runs_now()
    again = hall.poll()
    assert again is not None
    assert again.countdown == 0
    assert len(hall.sent_on()) == 2
    assert hall.poll(again.generation) is None
    assert sorted(hall.sent_on()) == ["1", "2", "3"]


def test_one_that_came_up_since_the_first_look_is_not_dispatched(hall: Hall, api: FakeBackend) -> None:
    hall.enter("1")
    api.runs_now()
    assert hall.wait("1") == Suspend()
    assert api.dispatched == []
    assert hall.poll() is None
    assert hall.sent_on() == ["1"]


def test_without_a_look_nothing_is_dispatched(hall: Hall, api: FakeBackend) -> None:
    hall.enter("1")
    api.broken["list_serve_applications"] = ServerError()
    assert isinstance(hall.wait("1"), Reschedule)
    assert api.dispatched == []
    api.broken.clear()
    assert hall.wait("1") == Suspend()
    assert len(api.dispatched) == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (status, f"Pre-processor deployment failed: serve application reached terminal state ({status})")
        for status in ("DEPLOY_FAILED", "UNHEALTHY", "UNAVAILABLE")
    ],
)
def test_a_failed_application_ends_everybody(hall: Hall, api: FakeBackend, status: str, message: str) -> None:
    for job in "12":
        hall.enter(job)
        hall.wait(job)
    api.records = [{"id": 1, "status": status, "job": 101}]
    hall.poll()
    assert [hall.error(job) for job in "12"] == [message, message]
    assert hall.room.dispatch() is None


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_a_failed_job_ends_everybody(hall: Hall, api: FakeBackend, status: str) -> None:
    hall.enter("1")
    hall.wait("1")
    api.jobs["101"] = status
    hall.poll()
    assert hall.error("1") == f"Pre-processor deployment failed: job reached terminal state ({status})"
    hall.enter("2")
    hall.wait("2")
    assert len(api.dispatched) == 2


def test_an_old_failure_does_not_kill_a_new_start(hall: Hall, api: FakeBackend) -> None:
    api.records = [{"id": 1, "status": "DEPLOY_FAILED", "job": 5}]
    hall.enter("1")
    hall.wait("1")
    again = hall.poll()
    assert again is not None
    assert hall.error("1") is None
    api.records[0]["status"] = "DEPLOYING"
    again = hall.poll(again.generation)
    assert again is not None
    api.records[0]["status"] = "DEPLOY_FAILED"
    hall.poll(again.generation)
    assert hall.error("1") == str(errors.application_failed("DEPLOY_FAILED"))


def test_time_runs_out(hall: Hall, clock: Clock) -> None:
    hall.enter("1")
    hall.wait("1")
    again = hall.poll()
    assert again is not None
    clock.forward(100)
    hall.enter("2")
    hall.wait("2")
    clock.forward(81)
    again = hall.poll(again.generation)
    assert again is not None
    assert hall.error("1") == "Pre-processor did not become ready within timeout"
    assert hall.error("2") is None
    assert hall.waiting() == ["2"]


def test_a_later_run_does_not_dispatch_what_is_on_its_way(hall: Hall, api: FakeBackend, clock: Clock) -> None:
    hall.enter("1")
    hall.wait("1")
    clock.forward(181)
    assert hall.poll() is None
    assert hall.error("1") == str(errors.timed_out())
    hall.enter("2")
    hall.wait("2")
    again = hall.poll()
    assert again is not None
    assert len(api.dispatched) == 1
    api.jobs["101"] = "FAILED"
    hall.poll(again.generation)
    assert hall.error("2") == str(errors.job_failed("FAILED"))


@pytest.mark.parametrize("status", ["FAILED", "SUCCEEDED"])
def test_a_job_that_ended_while_nobody_waited_is_dispatched_anew(
    hall: Hall, api: FakeBackend, clock: Clock, sender: RecordingSender, status: str
) -> None:
    hall.enter("1")
    hall.wait("1")
    clock.forward(181)
    assert hall.poll() is None
    api.jobs["101"] = status
    hall.enter("2")
    hall.wait("2")
    assert hall.poll() is not None
    assert hall.error("2") is None
    assert [sent.kwargs["job"] for sent in sender.of(DISPATCH.name)] == ["2"]
    hall.wait("2")
    assert len(api.dispatched) == 2
    assert hall.room.dispatch().job == "102"


def test_a_deployment_that_succeeded_and_is_not_there_is_dispatched_anew(
    hall: Hall, api: FakeBackend, clock: Clock, sender: RecordingSender
) -> None:
    hall.enter("1")
    hall.wait("1")
    api.jobs["101"] = "SUCCEEDED"
    again = hall.poll()
    assert again is not None
    assert sender.of(DISPATCH.name) == []
    clock.forward(61)
    hall.poll(again.generation)
    assert len(sender.of(DISPATCH.name)) == 1


def test_a_dispatched_job_that_the_backend_does_not_know_any_more_is_dispatched_anew(
    hall: Hall, api: FakeBackend, clock: Clock, sender: RecordingSender
) -> None:
    hall.enter("1")
    hall.wait("1")
    api.broken["get_job"] = NotFoundError()
    clock.forward(181)
    assert hall.poll() is None
    hall.enter("2")
    hall.wait("2")
    again = hall.poll()
    assert again is not None
    assert sender.of(DISPATCH.name) == [], "it may be a backend that does not know it yet"
    clock.forward(61)
    assert hall.poll(again.generation) is not None
    assert [sent.kwargs["job"] for sent in sender.of(DISPATCH.name)] == ["2"]
    hall.wait("2")
    assert len(api.dispatched) == 2
    assert hall.error("2") is None


def test_a_job_that_the_backend_knows_after_all_is_not_dispatched_anew(
    hall: Hall, api: FakeBackend, clock: Clock, sender: RecordingSender
) -> None:
    hall.enter("1")
    hall.wait("1")
    api.broken["get_job"] = NotFoundError()
    again = hall.poll()
    assert again is not None
    clock.forward(61)
    del api.broken["get_job"]
    again = hall.poll(again.generation)
    assert again is not None
    api.broken["get_job"] = NotFoundError()
    hall.poll(again.generation)
    assert sender.of(DISPATCH.name) == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValidationError(), "Pre-processor deployment dispatch failed (ValidationError)"),
        (ServerError(), "Pre-processor deployment dispatch failed (ServerError)"),
        (
            ClientConnectionError("503 Service Unavailable: nobody listens at the service's address"),
            "Pre-processor deployment dispatch failed (ClientConnectionError)",
        ),
    ],
)
def test_a_refused_dispatch_ends_everybody_and_is_forgotten(
    hall: Hall, api: FakeBackend, error: Exception, message: str
) -> None:
    for job in "12":
        hall.enter(job)
    api.broken["run_plugin"] = error

    hall.wait("1")
    assert hall.error("1") == message
    hall.room.join("2", 60)
    hall.poll()
    assert hall.error("2") == message
    assert hall.waiting() == []
    api.broken.clear()
    hall.enter("3")
    hall.wait("3")
    assert len(api.dispatched) == 2


@pytest.mark.parametrize("error", [ServerError(), ClientTimeoutError()], ids=["refused", "unclear"])
def test_a_dispatch_that_fails_when_nobody_waits_any_more_fails_none_of_those_who_come_later(
    hall: Hall, api: FakeBackend, clock: Clock, error: Exception
) -> None:
    # Given a run that is stopped while the backend keeps its dispatch waiting, so that it leaves the room
    hall.enter("1")

    def slow(count: int) -> None:
        stop_run("1", hall.runs)
        assert hall.poll() is None
        raise error

    api.dispatch_answer = slow
    hall.wait("1")

    # When another run comes an hour later
    clock.forward(3600)
    api.dispatch_answer = lambda count: {"id": 100 + count}
    hall.enter("2")
    hall.wait("2")
    hall.poll()

    # Then it has its own chance
    assert hall.error("2") is None
    assert hall.waiting() == ["2"]


def test_a_dispatch_that_fails_after_its_run_was_let_out_does_not_end_the_run(
    hall: Hall, api: FakeBackend
) -> None:
    # Given a dispatch that did its work, while the backend keeps its answer back until the client gives up
    hall.enter("1")

    def slow(count: int) -> None:
        api.runs_now()
        hall.poll()
        assert hall.sent_on() == ["1"]
        hall.step(to_task.FETCH_TASKS, "1", lambda run, services: Suspend())
        raise ClientTimeoutError

    api.dispatch_answer = slow

    # When the dispatching step ends with the error
    hall.wait("1")

    # Then the run that collects its tasks by now goes on
    assert hall.error("1") is None


def test_the_cause_of_a_failed_dispatch_is_attached(hall: Hall, api: FakeBackend) -> None:
    hall.enter("1")
    api.broken["run_plugin"] = ServerError("500: http://backend/x?token=abcdefgh")
    caught: list[RuntimeError] = []

    def function(run: Run, services: Services) -> Suspend:
        with pytest.raises(RuntimeError) as failure:
            dispatch(run, services)
        caught.append(failure.value)
        return Suspend()

    hall.step(DISPATCH, "1", function)
    assert isinstance(caught[0].__cause__, ServerError)
    assert caught[0].__cause__.status_code == 500
    assert "abcdefgh" not in str(caught[0].__cause__)


@pytest.mark.parametrize(
    "error",
    [
        ClientTimeoutError(),
        MalformedResponseError(),
        ServerError("504", 504),
        TimeoutError(),
        ClientConnectionError("503 Service Unavailable: the connection was lost"),
        ConnectionResetError(),
    ],
)
def test_after_an_unclear_dispatch_newcomers_wait_before_they_dispatch(
    hall: Hall, api: FakeBackend, sender: RecordingSender, clock: Clock, error: Exception
) -> None:
    hall.enter("1")
    api.broken["run_plugin"] = error
    hall.wait("1")
    assert str(hall.error("1")).startswith("Pre-processor deployment dispatch failed (")
    hall.poll()
    api.broken.clear()
    hall.enter("2")
    hall.wait("2")
    again = hall.poll()
    assert again is not None
    assert hall.error("2") is None
    assert len(api.dispatched) == 1
    for _ in range(7):
        clock.forward(9)  # polls are never further apart than ten seconds
        again = hall.poll(again.generation)
        assert again is not None
    assert [sent.kwargs["job"] for sent in sender.of(DISPATCH.name)] == ["2"]
    hall.wait("2")
    assert len(api.dispatched) == 2


def test_what_came_of_an_unclear_dispatch_is_waited_for(
    hall: Hall, api: FakeBackend, sender: RecordingSender, clock: Clock
) -> None:
    hall.enter("1")
    api.broken["run_plugin"] = ClientTimeoutError()
    hall.wait("1")
    hall.poll()
    hall.enter("2")
    hall.wait("2")
    api.records = [{"id": 9, "status": "DEPLOYING", "job": 77}]
    clock.forward(61)
    again = hall.poll()
    assert again is not None
    assert sender.of(DISPATCH.name) == []


def test_an_answer_without_a_job_is_a_failed_dispatch(hall: Hall, api: FakeBackend) -> None:
    hall.enter("1")
    api.dispatch_answer = lambda count: {"detail": "ok"}
    hall.wait("1")
    assert hall.error("1") == "Pre-processor deployment dispatch failed (MalformedResponse)"


def test_who_died_before_it_dispatched_dispatches_when_it_comes_again(
    hall: Hall, api: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    hall.enter("1")
    hall.room.join("1", 60)
    hall.step(DISPATCH, "1", lambda run, services: Suspend())
    hall.wait("1")
    assert len(api.dispatched) == 1


def test_who_died_after_it_dispatched_does_not_dispatch_again(hall: Hall, api: FakeBackend) -> None:
    hall.enter("1")
    joined = hall.room.join("1", 60)
    assert joined.claim is not None
    hall.room.mark_sent(joined.claim, {})
    hall.step(DISPATCH, "1", lambda run, services: Suspend())
    assert hall.wait("1") == Suspend()
    assert api.dispatched == []
    api.runs_now()
    assert hall.poll() is None
    assert hall.sent_on() == ["1"]


def _dispatcher_died(hall: Hall, services: Services) -> None:
    """Its request was under way; the visibility timeout is short."""
    services.runs.timing = Timing(10.0)
    hall.enter("1")
    joined = hall.room.join("1", 180)
    assert joined.claim is not None
    hall.room.mark_sent(joined.claim, {})
    hall.step(DISPATCH, "1", lambda run, services: Suspend())
    hall.wait("1")


def test_a_dispatch_of_a_dead_dispatcher_that_nobody_heard_of_is_made_again(
    hall: Hall, services: Services, api: FakeBackend, clock: Clock, sender: RecordingSender
) -> None:
    # Given a short visibility timeout, and a dispatcher that died with its request under way
    _dispatcher_died(hall, services)

    # When the broker has had its time to deliver again, and the backend to publish
    clock.forward(9)
    first = hall.poll()
    assert first is not None
    clock.forward(5)
    again = hall.poll(first.generation)
    assert again is not None
    assert sender.of(DISPATCH.name) == []
    assert again.countdown < 1.1, "it looks again when the time is up"
    clock.forward(2)
    hall.poll(again.generation)

    # Then one of those who wait dispatches
    assert len(sender.of(DISPATCH.name)) == 1


@pytest.mark.parametrize("queue", ["deploy", "deploy.1"])
def test_a_dispatch_is_not_lost_while_deployments_lie_unread(
    hall: Hall, services: Services, clock: Clock, sender: RecordingSender, queue: str
) -> None:
    # Given a dispatcher that died with its request under way, and no worker that reads deployments
    _dispatcher_died(hall, services)
    sender.unread_of[queue] = 1

    # When workers poll for a minute
    again = hall.poll()
    for _ in range(12):
        assert again is not None
        clock.forward(5)
        again = hall.poll(again.generation)

    # Then nobody dispatches again, nor as soon as the message is taken
    sender.unread_of.clear()
    for _ in range(3):
        assert again is not None
        clock.forward(4)
        again = hall.poll(again.generation)
    assert sender.of(DISPATCH.name) == []
    # And somebody does when its deployment has not begun in all the time that it has
    assert again is not None
    clock.forward(4)
    hall.poll(again.generation)
    assert len(sender.of(DISPATCH.name)) == 1


def test_a_dispatch_is_not_lost_before_workers_that_were_all_away_have_read_what_came_of_it(
    hall: Hall, services: Services, clock: Clock, sender: RecordingSender
) -> None:
    # Given a dispatcher that died with its request under way, after a first look, and with it all workers
    _dispatcher_died(hall, services)
    clock.forward(1)
    first = hall.poll()
    assert first is not None

    # When they are back a minute later, and find a poll beside the deployment's message
    clock.forward(60)
    second = hall.poll(first.generation)
    assert second is not None
    clock.forward(4)
    hall.room.extend_deadline()  # the message is read
    clock.forward(3)
    third = hall.poll(second.generation)

    # Then nobody dispatches again before that deployment had its time to begin
    assert third is not None
    assert sender.of(DISPATCH.name) == []
    # And somebody does when it has not begun
    clock.forward(5)
    fourth = hall.poll(third.generation)
    assert fourth is not None
    clock.forward(8)
    hall.poll(fourth.generation)
    assert len(sender.of(DISPATCH.name)) == 1


def test_a_dispatch_is_not_lost_while_its_dispatcher_waits_for_the_answer(
    hall: Hall, services: Services, redis: FakeRedis, clock: Clock, sender: RecordingSender
) -> None:
    # Given a backend that takes long to answer a dispatcher that lives
    _dispatcher_died(hall, services)
    clock.forward(22)
    redis.set(lock_key("1", DISPATCH.name), "its token")

    # When the room is polled
    assert hall.poll() is not None

    # Then nobody else dispatches
    assert sender.of(DISPATCH.name) == []


def test_a_deployment_that_has_begun_is_the_job_of_a_dispatch_whose_answer_was_lost(
    hall: Hall, services: Services, api: FakeBackend, clock: Clock, sender: RecordingSender
) -> None:
    # Given a dispatcher that died before it knew the job, and the deployment that came of it
    _dispatcher_died(hall, services)
    assert hall.room.set_job("101")
    assert not hall.room.set_job("102")

    # When it loads its model for longer than any patience
    clock.forward(120)
    again = hall.poll()

    # Then it is waited for, and its end counts
    assert again is not None
    assert sender.of(DISPATCH.name) == []
    api.jobs["101"] = "FAILED"
    hall.poll(again.generation)
    assert hall.error("1") == str(errors.job_failed("FAILED"))


def test_a_deployment_that_nobody_dispatched_is_none_of_the_rooms(hall: Hall) -> None:
    assert not hall.room.set_job("101")
    hall.enter("1")
    hall.room.join("1", 60)
    assert not hall.room.set_job("101"), "the dispatch is not sent yet"


def test_who_ended_a_waiting_run_and_died_is_finished_by_the_next_poll(
    hall: Hall, sender: RecordingSender
) -> None:
    # Given a waiting run whose end was written by somebody who died before its report was sent
    hall.enter("1")
    hall.wait("1")
    hall.runs.store.finish("1", End(JobStatus.FAILED, {"error": "x"}))
    sender.sent = [sent for sent in sender.sent if sent.name != "runs.report"]

    # When the room is polled again
    hall.poll()

    # Then the end is on its way
    assert [sent.kwargs["job"] for sent in sender.of("runs.report")] == ["1"]
    assert hall.waiting() == []


def test_a_claim_whose_owner_is_gone_is_taken_over(
    hall: Hall, api: FakeBackend, clock: Clock, sender: RecordingSender
) -> None:
    hall.enter("1")
    dead = hall.room.join("1", 60)
    stop_run("1", hall.runs)
    clock.forward(21)
    hall.enter("2")
    hall.wait("2")
    assert len(api.dispatched) == 1
    assert dead.claim is not None
    assert not hall.room.mark_sent(dead.claim, {})


def test_an_idle_claim_is_handed_to_somebody_who_waits(
    hall: Hall, clock: Clock, sender: RecordingSender, api: FakeBackend
) -> None:
    hall.enter("1")
    hall.room.join("1", 60)
    hall.enter("2")
    hall.wait("2")
    stop_run("1", hall.runs)
    clock.forward(21)
    hall.poll(1)
    assert [sent.kwargs["job"] for sent in sender.of(DISPATCH.name)] == ["2"]
    hall.wait("2")
    assert len(api.dispatched) == 1


def test_a_stopped_run_leaves(hall: Hall) -> None:
    for job in "12":
        hall.enter(job)
        hall.wait(job)
    stop_run("1", hall.runs)
    again = hall.poll()
    assert again is not None
    assert hall.waiting() == ["2"]
    stop_run("2", hall.runs)
    assert hall.poll(again.generation) is None


@pytest.mark.parametrize("call", ["list_serve_applications", "get_job"])
def test_answers_that_are_errors_mean_to_keep_polling(hall: Hall, api: FakeBackend, call: str) -> None:
    hall.enter("1")
    hall.wait("1")
    for error in (ServerError(), MalformedResponseError(), ClientTimeoutError(), KeyError("results")):
        api.broken[call] = error
        again = hall.poll(hall.room.wake())
        assert again is not None
    assert hall.error("1") is None


def test_time_runs_out_while_the_backend_is_away(hall: Hall, api: FakeBackend, clock: Clock) -> None:
    hall.enter("1")
    hall.wait("1")
    api.broken["list_serve_applications"] = ClientConnectionError()
    clock.forward(181)
    assert hall.poll() is None
    assert hall.error("1") == str(errors.timed_out())


def test_a_new_wave_as_the_last_one_leaves_gets_its_own_poll(
    hall: Hall, api: FakeBackend, sender: RecordingSender
) -> None:
    hall.enter("1")
    hall.wait("1")
    hall.enter("2")
    api.runs_now()
    assert hall.poll() is None
    api.records.clear()
    hall.wait("2")
    assert len(sender.of(AWAIT_READY.name)) == 2
    assert hall.poll(1) is None
    again = hall.poll()
    assert again is not None
    assert hall.waiting() == ["2"]


def test_who_comes_while_the_last_one_leaves_is_polled_once(
    hall: Hall, api: FakeBackend, sender: RecordingSender
) -> None:
    hall.enter("1")
    hall.wait("1")
    hall.enter("2")
    api.runs_now()
    publish = hall.runs.publisher.publish

    def publish_and_join(step: object, *args: object, **kwargs: object) -> None:
        publish(step, *args, **kwargs)
        if step is FETCH_TASKS and hall.waiting() == ["1"]:
            hall.wait("2")

    hall.runs.publisher.publish = publish_and_join
    again = hall.poll()
    assert again is not None
    assert len(sender.of(AWAIT_READY.name)) == 1
    assert hall.poll(again.generation) is None
    assert hall.sent_on() == ["1", "2"]


def test_a_copy_of_an_older_poll_dies(hall: Hall, api: FakeBackend) -> None:
    hall.enter("1")
    hall.wait("1")
    again = hall.poll(1)
    assert again is not None
    looks = api.looks
    assert hall.poll(1) is None
    assert api.looks == looks


def test_a_poll_that_died_before_its_retry_was_out_publishes_it_when_it_comes_again(hall: Hall) -> None:
    hall.enter("1")
    hall.wait("1")
    again = hall.poll(1)
    assert again is not None
    republished = hall.poll(1, redelivered=True)
    assert republished is not None
    assert republished.generation == again.generation
    assert hall.poll(again.generation) is not None
    assert hall.poll(1, redelivered=True) is not None  # the retry of that one is not begun yet
    hall.poll(3)
    assert hall.poll(2) is None


def test_a_poll_that_died_among_those_it_let_out_lets_out_the_rest(
    hall: Hall, api: FakeBackend, sender: RecordingSender
) -> None:
    for job in "12":
        hall.enter(job)
        hall.wait(job)
    api.runs_now()
    sender.broken = True
    with pytest.raises(Exception, match="away"):
        hall.poll()
    assert hall.waiting() == ["1", "2"]
    sender.broken = False
    assert hall.poll(redelivered=True) is None
    assert hall.sent_on() == ["1", "2"]


def test_a_poll_that_finds_the_room_locked_comes_back(hall: Hall, redis: FakeRedis) -> None:
    hall.enter("1")
    hall.wait("1")
    redis.set(hall.room.lock, "somebody")
    again = hall.poll(1)
    assert again is not None
    assert again.generation == 1


def test_a_wake_polls_at_once_and_ends_the_poll_before(
    hall: Hall, api: FakeBackend, sender: RecordingSender
) -> None:
    hall.enter("1")
    hall.wait("1")
    again = hall.poll()
    assert again is not None
    api.runs_now()
    assert wake(hall.runs, NAME)
    last = sender.of(AWAIT_READY.name)[-1]
    assert last.countdown == 0
    assert hall.poll() is None
    assert hall.sent_on() == ["1"]
    assert hall.poll(again.generation) is None


def test_an_empty_room_is_not_woken(hall: Hall, sender: RecordingSender) -> None:
    assert not wake(hall.runs, NAME)
    assert sender.sent == []


def test_a_silent_room_is_polled_again(hall: Hall, sender: RecordingSender) -> None:
    hall.enter("1")
    hall.wait("1")
    recover_waitlist(NAME.key, hall.runs)
    assert sender.of(AWAIT_READY.name)[-1].kwargs["generation"] == 2
    assert hall.poll(1) is None


def test_a_room_whose_first_poll_never_went_out_is_missed(
    hall: Hall, api: FakeBackend, sender: RecordingSender, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a run whose worker died before it published the poll, and which was stopped before it came back
    hall.enter("1")

    def died(*_: object) -> None:
        raise RedisConnectionError("connection lost")

    with monkeypatch.context() as patch:
        patch.setattr("worker.pre_processor.dispatch.schedule_poll", died)
        with pytest.raises(RedisConnectionError):
            hall.wait("1")
    stop_run("1", hall.runs)
    # When others come after it, and hear that the room is polled
    hall.enter("2")
    clock.forward(40)
    assert hall.wait("2") == Suspend()
    clock.forward(hall.runs.timing.heartbeat_grace_seconds - 39)
    # Then the sweep misses the room, and does not wait longer for those who came
    assert sender.of(AWAIT_READY.name) == []
    assert NAME.member in hall.runs.heartbeats.overdue()
    recover_waitlist(NAME.key, hall.runs)
    api.runs_now()
    assert hall.poll() is None
    assert hall.sent_on() == ["2"]


def test_a_silent_room_without_waiters_is_forgotten(hall: Hall, redis: FakeRedis) -> None:
    hall.runs.heartbeats.schedule(NAME.member)
    recover_waitlist(NAME.key, hall.runs)
    assert redis.zscore(HEARTBEATS_KEY, NAME.member) is None


def test_a_waiting_run_is_not_taken_for_lost(hall: Hall, clock: Clock) -> None:
    hall.enter("1")
    hall.wait("1")
    clock.forward(170)
    assert "run:1" not in hall.runs.heartbeats.overdue()


def test_the_ramp_starts_below_a_second_and_ends_at_the_ceiling(hall: Hall) -> None:
    assert poll_backoff(0, 10) <= 1
    assert poll_backoff(60, 10) == 10
    waits = [poll_backoff(attempt, 10) for attempt in range(20)]
    assert waits == sorted(waits)


@pytest.mark.parametrize("tenant", ["", "acme", "a:b@{c}/ü %"])
def test_a_rooms_name_survives_its_text(tenant: str) -> None:
    name = WaitlistName(tenant, 3, "digits", "1.0.0+a")
    assert WaitlistName.parse(name.key) == name
    assert "{" not in name.key


def test_the_rooms_keys_share_a_slot_and_expire(hall: Hall, redis: FakeRedis) -> None:
    hall.enter("1")
    hall.wait("1")
    keys = list(redis.keys("synapse:rooms:*"))
    assert len(keys) == 2
    for key in keys:
        assert f"{{{NAME.key}}}" in key
        assert redis.ttl(key) > 0


def test_rooms_of_tenants_are_apart(hall: Hall, api: FakeBackend, services: Services) -> None:
    hall.enter("1")
    hall.wait("1")
    hall.accept("2", tenant="acme")
    hall.step(DETECT, "2", detection.detect)
    hall.wait("2")
    assert len(api.dispatched) == 2
