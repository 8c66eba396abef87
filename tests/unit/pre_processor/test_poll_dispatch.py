"""What polls make of a dispatch that failed, ended or got no reply."""

import pytest
from fakeredis import FakeRedis

from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.conftest import Clock
from tests.unit.pre_processor.waitlist_harness import FakeServices, WaitlistHarness
from worker.platform import (
    ClientConnectionError,
    ClientTimeoutError,
    MalformedResponseError,
    NotFoundError,
    ServerError,
    ValidationError,
)
from worker.pre_processor import decision as errors
from worker.pre_processor.waitlist import (
    DISPATCH,
)
from worker.runs.keys import lock_key
from worker.runs.model import Suspend
from worker.runs.reporter import stop
from worker.runs.runs import Timing
from worker.testing import FakeBackend


def test_a_later_run_does_not_dispatch_what_is_on_its_way(
    harness: WaitlistHarness, backend: FakeBackend, clock: Clock
) -> None:
    harness.wait("1")
    clock.forward(181)
    assert harness.poll() is None
    assert harness.error("1") == str(errors.timed_out())
    harness.wait("2")
    following = harness.poll()
    assert following is not None
    assert len(backend.dispatches) == 1
    backend.jobs["101"] = "FAILED"
    harness.poll(following.generation)
    assert harness.error("2") == str(errors.job_failed("FAILED"))


@pytest.mark.parametrize("status", ["FAILED", "SUCCEEDED"])
def test_a_job_that_ended_with_no_run_waiting_is_replaced(
    harness: WaitlistHarness, backend: FakeBackend, clock: Clock, sender: RecordingPublisher, status: str
) -> None:
    harness.wait("1")
    clock.forward(181)
    assert harness.poll() is None
    backend.jobs["101"] = status
    harness.wait("2")
    assert harness.poll() is not None
    assert harness.error("2") is None
    assert harness.redispatching() == ["2"]
    harness.dispatch("2")
    assert len(backend.dispatches) == 2
    assert harness.waitlist.dispatch().job == "102"


def test_a_deployment_that_succeeded_unseen_is_replaced(
    harness: WaitlistHarness, backend: FakeBackend, clock: Clock, sender: RecordingPublisher
) -> None:
    harness.wait("1")
    backend.jobs["101"] = "SUCCEEDED"
    following = harness.poll()
    assert following is not None
    assert harness.redispatching() == []
    clock.forward(61)
    harness.poll(following.generation)
    assert len(harness.redispatching()) == 1


def test_a_job_that_the_backend_lost_is_replaced(
    harness: WaitlistHarness, backend: FakeBackend, clock: Clock, sender: RecordingPublisher
) -> None:
    harness.wait("1")
    backend.faults.fail("get_job", NotFoundError())
    clock.forward(181)
    assert harness.poll() is None
    harness.wait("2")
    following = harness.poll()
    assert following is not None
    assert harness.redispatching() == [], "it may be a backend that does not know it yet"
    clock.forward(61)
    assert harness.poll(following.generation) is not None
    assert harness.redispatching() == ["2"]
    harness.dispatch("2")
    assert len(backend.dispatches) == 2
    assert harness.error("2") is None


def test_a_job_that_the_backend_knows_again_is_not_replaced(
    harness: WaitlistHarness, backend: FakeBackend, clock: Clock, sender: RecordingPublisher
) -> None:
    harness.wait("1")
    backend.faults.fail("get_job", NotFoundError())
    following = harness.poll()
    assert following is not None
    clock.forward(61)
    backend.faults.recover("get_job")
    following = harness.poll(following.generation)
    assert following is not None
    backend.faults.fail("get_job", NotFoundError())
    harness.poll(following.generation)
    assert harness.redispatching() == []


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
def test_a_rejected_dispatch_fails_all_runs_and_is_cleared(
    harness: WaitlistHarness, backend: FakeBackend, error: Exception, message: str
) -> None:
    # Given a run that joins while another one's dispatch is under way
    for job in "12":
        harness.detect(job)

    def reject(_: int) -> None:
        harness.waitlist.join("2", 60)
        raise error

    backend.dispatch_answer = reject

    # When the backend rejects it
    harness.dispatch("1")
    harness.poll()

    # Then both fail, and a later run dispatches
    assert [harness.error(job) for job in "12"] == [message, message]
    assert harness.waiting() == []
    backend.dispatch_answer = lambda count: {"id": 100 + count}
    harness.wait("3")
    assert len(backend.dispatches) == 2


@pytest.mark.parametrize("error", [ServerError(), ClientTimeoutError()], ids=["rejected", "maybe accepted"])
def test_a_dispatch_that_fails_unseen_fails_no_later_run(
    harness: WaitlistHarness, backend: FakeBackend, clock: Clock, error: Exception
) -> None:
    # Given a run that is stopped while the backend holds its dispatch, so that it leaves the waiting list
    harness.detect("1")

    def slow(count: int) -> None:
        stop("1", harness.runs)
        assert harness.poll() is None
        raise error

    backend.dispatch_answer = slow
    harness.dispatch("1")

    # When another run comes an hour later
    clock.forward(3600)
    backend.dispatch_answer = lambda count: {"id": 100 + count}
    harness.wait("2")
    harness.poll()

    # Then it has its own chance
    assert harness.error("2") is None
    assert harness.waiting() == ["2"]


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
def test_new_runs_wait_for_a_dispatch_that_may_be_accepted(
    harness: WaitlistHarness, backend: FakeBackend, sender: RecordingPublisher, clock: Clock, error: Exception
) -> None:
    harness.detect("1")
    backend.faults.fail("run_plugin", error)
    harness.dispatch("1")
    assert str(harness.error("1")).startswith("Pre-processor deployment dispatch failed (")
    harness.poll()
    backend.faults.recover("run_plugin")
    harness.wait("2")
    following = harness.poll()
    assert following is not None
    assert harness.error("2") is None
    assert len(backend.dispatches) == 1
    for _ in range(7):
        if not harness.redispatching():  # on a slow machine time passes by itself, too
            clock.forward(9)  # polls are never further apart than ten seconds
            following = harness.poll(following.generation)
            assert following is not None
    assert harness.redispatching() == ["2"]
    harness.dispatch("2")
    assert len(backend.dispatches) == 2


def test_a_deployment_after_a_lost_answer_is_waited_for(
    harness: WaitlistHarness, backend: FakeBackend, sender: RecordingPublisher, clock: Clock
) -> None:
    harness.detect("1")
    backend.faults.fail("run_plugin", ClientTimeoutError())
    harness.dispatch("1")
    harness.poll()
    harness.wait("2")
    backend.serve_applications = [{"id": 9, "status": "DEPLOYING", "job": 77}]
    clock.forward(61)
    following = harness.poll()
    assert following is not None
    assert harness.redispatching() == []


def _dispatcher_died(harness: WaitlistHarness, services: FakeServices) -> None:
    """Its request was under way; the visibility timeout is short."""
    services.runs.timing = Timing(10.0)
    harness.detect("1")
    joined = harness.waitlist.join("1", 180)
    assert joined.claim is not None
    harness.waitlist.mark_sent(joined.claim, {})
    harness.step(DISPATCH, "1", lambda run, services: Suspend())
    harness.dispatch("1")


def test_a_dispatch_without_any_reply_is_sent_again(
    harness: WaitlistHarness,
    services: FakeServices,
    backend: FakeBackend,
    clock: Clock,
    sender: RecordingPublisher,
) -> None:
    # Given a short visibility timeout, and a dispatcher that died with its request under way
    _dispatcher_died(harness, services)

    # When the broker has had its time to redeliver, and the backend to publish
    clock.forward(9)
    first = harness.poll()
    assert first is not None
    clock.forward(5)
    following = harness.poll(first.generation)
    assert following is not None
    assert harness.redispatching() == []
    assert following.countdown < 1.1, "it polls again when the time is up"
    clock.forward(2)
    harness.poll(following.generation)

    # Then one of the runs dispatches
    assert len(harness.redispatching()) == 1


@pytest.mark.parametrize("queue", ["deploy", "deploy.1"])
def test_a_dispatch_is_not_lost_while_deployments_are_unread(
    harness: WaitlistHarness, services: FakeServices, clock: Clock, sender: RecordingPublisher, queue: str
) -> None:
    # Given a dispatcher that died with its request under way, and no worker that reads deployments
    _dispatcher_died(harness, services)
    sender.queue_lengths[queue] = 1

    # When workers poll for a minute
    following = harness.poll()
    for _ in range(12):
        assert following is not None
        clock.forward(5)
        following = harness.poll(following.generation)

    # Then no run dispatches again, nor as soon as the message is read
    sender.queue_lengths.clear()
    for _ in range(3):
        assert following is not None
        clock.forward(4)
        following = harness.poll(following.generation)
    assert harness.redispatching() == []
    # And somebody does when its deployment has not begun in all the time that it has
    assert following is not None
    clock.forward(4)
    harness.poll(following.generation)
    assert len(harness.redispatching()) == 1


def test_a_dispatch_is_not_lost_before_workers_have_read_it(
    harness: WaitlistHarness, services: FakeServices, clock: Clock, sender: RecordingPublisher
) -> None:
    # Given a dispatcher that died with its request under way, after a first poll, and with it all workers
    _dispatcher_died(harness, services)
    clock.forward(1)
    first = harness.poll()
    assert first is not None

    # When they are back a minute later, and find a poll beside the deployment's message
    clock.forward(60)
    second = harness.poll(first.generation)
    assert second is not None
    clock.forward(4)
    harness.waitlist.extend_deadline()  # the message is read
    clock.forward(3)
    third = harness.poll(second.generation)

    # Then no run dispatches again before that deployment has had its time to begin
    assert third is not None
    assert harness.redispatching() == []
    # And somebody does when it has not begun
    clock.forward(5)
    fourth = harness.poll(third.generation)
    assert fourth is not None
    clock.forward(8)
    harness.poll(fourth.generation)
    assert len(harness.redispatching()) == 1


def test_a_dispatch_is_not_lost_while_its_dispatcher_waits(
    harness: WaitlistHarness,
    services: FakeServices,
    redis: FakeRedis,
    clock: Clock,
    sender: RecordingPublisher,
) -> None:
    # Given a backend that takes long to answer a dispatcher that lives
    _dispatcher_died(harness, services)
    clock.forward(22)
    redis.set(lock_key("1", DISPATCH.name), "its token")

    # When the waiting list is polled
    assert harness.poll() is not None

    # Then no other run dispatches
    assert harness.redispatching() == []


def test_a_deployment_that_has_begun_is_the_dispatched_job(
    harness: WaitlistHarness,
    services: FakeServices,
    backend: FakeBackend,
    clock: Clock,
    sender: RecordingPublisher,
) -> None:
    # Given a dispatcher that died before it knew the job, and the deployment that came of it
    _dispatcher_died(harness, services)
    assert harness.waitlist.set_job("101")
    assert not harness.waitlist.set_job("102")

    # When it loads its model for longer than any timeout of a dispatch
    clock.forward(120)
    following = harness.poll()

    # Then it is waited for, and its end counts
    assert following is not None
    assert harness.redispatching() == []
    backend.jobs["101"] = "FAILED"
    harness.poll(following.generation)
    assert harness.error("1") == str(errors.job_failed("FAILED"))


def test_an_old_failure_that_one_poll_does_not_see_fails_no_run(
    harness: WaitlistHarness, backend: FakeBackend
) -> None:
    # Given a history of several pages, of which each poll reads others
    for number in range(1_000):
        backend.add_application("DEPLOY_FAILED", id=number, job=5000 + number)
    harness.wait("1")

    # When the waiting list is polled
    for attempt in range(10):
        assert harness.poll(harness.waitlist.wake(), attempt=attempt) is not None

    # Then the failures stay those from before the dispatch
    assert harness.error("1") is None
