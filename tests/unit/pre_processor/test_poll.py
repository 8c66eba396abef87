"""The poll of a waiting list: runs are resumed, fail, or wait on."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakeredis import FakeRedis

from shared.channels import events_channel, logs_history
from shared.follower import LogFollower
from shared.statuses import JobStatus
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.conftest import Clock
from tests.unit.pre_processor.waitlist_harness import NAME, WaitlistHarness
from worker.lua import Scripts
from worker.platform import (
    ClientConnectionError,
    ClientTimeoutError,
    MalformedResponseError,
    ServerError,
)
from worker.pre_processor import decision as errors
from worker.pre_processor.poll import poll_backoff
from worker.pre_processor.waitlist import (
    AWAIT_READY,
    FETCH_TASKS,
)
from worker.runs.keys import RunField, heartbeats_key, outbox_key, run_key
from worker.runs.model import End, Suspend
from worker.runs.reports.reporter import stop
from worker.runs.runs import recover_run
from worker.testing import FakeBackend


def test_from_dispatch_to_ready(
    harness: WaitlistHarness, backend: FakeBackend, sender: RecordingPublisher
) -> None:
    harness.detect("1")
    assert harness.dispatch("1") == Suspend()
    body = {
        "agent": 1,
        "action": "deployment",
        "params": {"num_cpus": 1, "num_gpus": 0.1},
        "version": "1.0.0",
        "language": "en",
    }
    assert backend.dispatches == [("digits", body)]
    first = sender.of(AWAIT_READY.name)
    assert [(sent.queue, sent.kwargs) for sent in first] == [("to_task", {"room": NAME.key, "generation": 1})]
    following = harness.poll()
    assert following is not None
    assert following.generation == 2
    assert 0 < following.countdown <= 1
    backend.add_application()
    assert harness.poll(2) is None
    assert harness.resumed() == ["1"]
    assert harness.waiting() == []
    assert harness.services.redis.zscore(heartbeats_key(), NAME.member) is None


def test_a_run_is_resumed_with_its_own_priority(
    harness: WaitlistHarness, backend: FakeBackend, sender: RecordingPublisher
) -> None:
    for job, priority in (("1", 6), ("2", 0)):
        harness.detect(job, priority=priority)
        harness.dispatch(job)
    backend.add_application()

    harness.poll()

    resumed = {sent.kwargs["job"]: sent.priority for sent in sender.of(FETCH_TASKS.name)}
    assert resumed == {"1": 6, "2": 0}


def test_a_poll_that_sees_it_run_asks_for_no_job(
    harness: WaitlistHarness, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a run that waits for an application which runs by now
    harness.wait("1")
    backend.add_application()
    asked: list[object] = []
    monkeypatch.setattr(backend, "get_job", asked.append)

    # When it is polled, then it goes on, and nothing is asked about the job
    harness.poll()
    assert (harness.resumed(), asked) == (["1"], [])


def test_a_poll_resumes_a_batch_and_the_next_one_the_rest(
    harness: WaitlistHarness, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given batches of two runs, and no time for a second one
    monkeypatch.setattr("worker.pre_processor.poll.BATCH_WAITERS", 2)
    monkeypatch.setattr("worker.pre_processor.poll.MAX_POLL_SECONDS", -1)
    for job in "123":
        harness.wait(job)
    backend.add_application()

    # When they are polled, then two go on, and the next poll follows at once
    following = harness.poll()
    assert following is not None
    assert following.countdown == 0
    assert len(harness.resumed()) == 2
    assert harness.poll(following.generation) is None
    assert sorted(harness.resumed()) == ["1", "2", "3"]


@pytest.mark.parametrize("damaged", [b"\xff", "first"], ids=repr)
def test_a_damaged_run_keeps_no_others_waiting(
    harness: WaitlistHarness, backend: FakeBackend, redis: FakeRedis, damaged: str | bytes
) -> None:
    # Given runs that wait, and the position of one is damaged
    for job in "123":
        harness.wait(job)
    redis.hset(run_key("2"), RunField.POSITION, damaged)
    backend.add_application()

    # When they are polled, then all go on: the next step ends the damaged one
    harness.poll()
    assert sorted(harness.resumed()) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (status, f"Pre-processor deployment failed: serve application reached terminal state ({status})")
        for status in ("DEPLOY_FAILED", "UNHEALTHY", "UNAVAILABLE")
    ],
)
def test_a_failed_application_fails_all_runs(
    harness: WaitlistHarness, backend: FakeBackend, status: str, message: str
) -> None:
    for job in "12":
        harness.wait(job)
    backend.serve_applications = [{"id": 1, "status": status, "job": 101}]
    harness.poll()
    assert [harness.error(job) for job in "12"] == [message, message]
    assert harness.waitlist.dispatch() is None


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_a_failed_job_fails_all_runs(harness: WaitlistHarness, backend: FakeBackend, status: str) -> None:
    harness.wait("1")
    backend.jobs["101"] = status
    harness.poll()
    assert harness.error("1") == f"Pre-processor deployment failed: job reached terminal state ({status})"
    harness.wait("2")
    assert len(backend.dispatches) == 2


@pytest.mark.parametrize("is_shown", [False, True])
def test_the_reason_of_a_failed_job_follows_the_failure(
    harness: WaitlistHarness, backend: FakeBackend, is_shown: bool
) -> None:
    # Given a dispatched job that failed, with its reason, and the record of its application or none yet
    harness.wait("1")
    backend.jobs["101"] = "FAILED"
    backend.results["101"] = {"error": "ValueError: no weights at http://u:pw@h/x?token=abc123"}
    if is_shown:
        backend.serve_applications = [{"id": 1, "status": "DEPLOY_FAILED", "job": 101}]

    # When it is polled, then the run that waited says both
    harness.poll()
    what = "serve application reached terminal state (DEPLOY_FAILED)"
    what = what if is_shown else "job reached terminal state (FAILED)"
    expected = f"Pre-processor deployment failed: {what}: ValueError: no weights at <url>"
    assert harness.error("1") == expected


def test_an_old_failure_does_not_fail_a_new_start(harness: WaitlistHarness, backend: FakeBackend) -> None:
    backend.serve_applications = [{"id": 1, "status": "DEPLOY_FAILED", "job": 5}]
    harness.wait("1")
    following = harness.poll()
    assert following is not None
    assert harness.error("1") is None
    backend.serve_applications[0]["status"] = "DEPLOYING"
    following = harness.poll(following.generation)
    assert following is not None
    backend.serve_applications[0]["status"] = "DEPLOY_FAILED"
    harness.poll(following.generation)
    assert harness.error("1") == str(errors.application_failed("DEPLOY_FAILED"))


def test_a_run_fails_at_its_own_deadline(harness: WaitlistHarness, clock: Clock) -> None:
    harness.wait("1")
    following = harness.poll()
    assert following is not None
    clock.forward(100)
    harness.wait("2")
    clock.forward(81)
    following = harness.poll(following.generation)
    assert following is not None
    assert harness.error("1") == "Pre-processor did not become ready within timeout"
    assert harness.error("2") is None
    assert harness.waiting() == ["2"]


def test_the_sweep_finds_a_run_whose_end_nobody_reported(
    harness: WaitlistHarness, sender: RecordingPublisher, clock: Clock
) -> None:
    # Given a waiting run whose end was written by a worker that died before it reported it
    harness.wait("1")
    grace = harness.runs.timing.heartbeat_grace_seconds
    harness.runs.store.finish("1", End(JobStatus.FAILED, {"error": "x"}))
    sender.published.clear()

    # When the time of a heartbeat is up
    assert "run:1" not in harness.runs.heartbeats.overdue()
    clock.forward(grace)

    # Then the sweep finds it, long before the run would have waited in vain
    assert "run:1" in harness.runs.heartbeats.overdue()
    recover_run("1", harness.runs)
    assert harness.runs.redis.hexists(run_key("1"), RunField.END_SENT)
    assert harness.waiting() == []


def test_a_run_that_an_older_worker_ended_is_not_resumed(
    harness: WaitlistHarness, backend: FakeBackend, redis: FakeRedis, sender: RecordingPublisher
) -> None:
    # Given two waiting runs, of which a worker that knows no more than the record has ended one
    harness.wait("1", "2")
    redis.hset(run_key("1"), RunField.ENDED, '{"status": "FAILED", "result": {"error": "x"}}')
    backend.add_application()

    # When the runs are resumed
    assert harness.poll() is None

    # Then that one is not, and its end is reported
    assert harness.resumed() == ["2"]
    assert harness.runs.redis.hexists(run_key("1"), RunField.END_SENT)


def test_a_run_that_has_ended_does_not_join(harness: WaitlistHarness) -> None:
    harness.detect("1")
    stop("1", harness.runs)
    joined = harness.waitlist.join("1", 60)
    assert (joined.poll, joined.claim) == (0, None)
    assert harness.waiting() == []


def test_all_overdue_runs_fail_in_one_poll(
    harness: WaitlistHarness, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.pre_processor.poll.BATCH_WAITERS", 3)
    jobs = [str(number) for number in range(10)]
    harness.wait("last")
    for job in jobs:
        harness.accept(job)
        harness.waitlist.join(job, 60)
    clock.forward(61)
    assert harness.poll() is not None
    assert {harness.error(job) for job in jobs} == {str(errors.timed_out())}
    assert harness.waiting() == ["last"]


def test_a_poll_reads_as_much_of_a_long_list_as_of_a_short_one(
    harness: WaitlistHarness, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given the commands of polls with one run and with hundreds
    commands: list[str] = []
    own_thread = threading.get_ident()
    execute = FakeRedis.execute_command

    def counting(self: FakeRedis, *args: object, **options: object) -> object:
        if threading.get_ident() == own_thread:  # not what a lock of an earlier test does
            commands.append(str(args[0]))
        return execute(self, *args, **options)

    monkeypatch.setattr(FakeRedis, "execute_command", counting)
    harness.wait("1")
    for _ in range(2):  # after the second it has its diagnosis
        harness.poll(harness.waitlist.wake())
    counts = []
    for number in range(3):
        commands.clear()
        assert harness.poll(harness.waitlist.wake()) is not None
        counts.append(len(commands))
        for job in range(200):
            harness.accept(f"{number}-{job}")
            harness.waitlist.join(f"{number}-{job}", 180)
        for _ in range(2):  # after the second each has its diagnosis
            assert harness.poll(harness.waitlist.wake()) is not None

    # Then they are the same
    assert len(set(counts)) == 1


def test_a_stopped_run_leaves(harness: WaitlistHarness) -> None:
    for job in "12":
        harness.wait(job)
    stop("1", harness.runs)
    following = harness.poll()
    assert following is not None
    assert harness.waiting() == ["2"]
    stop("2", harness.runs)
    assert harness.poll(following.generation) is None


@pytest.mark.parametrize("call", ["list_serve_applications", "get_job"])
def test_answers_that_are_errors_are_polled_again(
    harness: WaitlistHarness, backend: FakeBackend, call: str
) -> None:
    harness.wait("1")
    for error in (ServerError(), MalformedResponseError(), ClientTimeoutError(), KeyError("results")):
        backend.faults.fail(call, error)
        following = harness.poll(harness.waitlist.wake())
        assert following is not None
    assert harness.error("1") is None


def test_deadlines_hold_while_the_backend_is_unavailable(
    harness: WaitlistHarness, backend: FakeBackend, clock: Clock
) -> None:
    harness.wait("1")
    backend.faults.fail("list_serve_applications", ClientConnectionError())
    clock.forward(181)
    assert harness.poll() is None
    assert harness.error("1") == str(errors.timed_out())


def test_runs_that_join_after_the_last_left_get_a_new_poll(
    harness: WaitlistHarness, backend: FakeBackend, sender: RecordingPublisher
) -> None:
    harness.wait("1")
    harness.detect("2")
    backend.add_application()
    assert harness.poll() is None
    backend.serve_applications.clear()
    harness.dispatch("2")
    assert len(sender.of(AWAIT_READY.name)) == 2
    assert harness.poll(1) is None
    following = harness.poll()
    assert following is not None
    assert harness.waiting() == ["2"]


def test_a_run_that_joins_as_the_last_leaves_is_polled_once(
    harness: WaitlistHarness, backend: FakeBackend, sender: RecordingPublisher
) -> None:
    harness.wait("1")
    harness.detect("2")
    backend.add_application()
    publish = harness.runs.publisher.publish

    def publish_and_join(step: object, *args: object, **kwargs: object) -> None:
        publish(step, *args, **kwargs)
        if step is FETCH_TASKS and harness.waiting() == ["1"]:
            harness.dispatch("2")

    harness.runs.publisher.publish = publish_and_join
    assert harness.poll() is None
    assert len(sender.of(AWAIT_READY.name)) == 1
    assert harness.resumed() == ["1", "2"]


def test_a_copy_of_an_older_poll_does_nothing(harness: WaitlistHarness, backend: FakeBackend) -> None:
    harness.wait("1")
    following = harness.poll(1)
    assert following is not None
    looks = backend.faults.calls["list_serve_applications"]
    assert harness.poll(1) is None
    assert backend.faults.calls["list_serve_applications"] == looks


def test_a_redelivered_poll_publishes_the_next_that_was_lost(harness: WaitlistHarness) -> None:
    harness.wait("1")
    following = harness.poll(1)
    assert following is not None
    republished = harness.poll(1, redelivered=True)
    assert republished is not None
    assert republished.generation == following.generation
    assert harness.poll(following.generation) is not None
    assert harness.poll(1, redelivered=True) is not None  # the retry of that one is not begun yet
    harness.poll(3)
    assert harness.poll(2) is None


def test_a_poll_that_died_while_resuming_resumes_the_rest(
    harness: WaitlistHarness, backend: FakeBackend, sender: RecordingPublisher
) -> None:
    for job in "12":
        harness.wait(job)
    backend.add_application()
    sender.broken = True
    retried = harness.poll()
    assert retried is not None
    assert retried.redelivered
    assert harness.waiting() == ["1", "2"]
    sender.broken = False
    assert harness.poll(redelivered=True) is None
    assert sorted(harness.resumed()) == ["1", "2"]


@pytest.mark.parametrize("redelivered", [False, True])
def test_a_poll_that_finds_its_list_locked_returns_as_it_came(
    harness: WaitlistHarness, redis: FakeRedis, redelivered: bool
) -> None:
    harness.wait("1")
    redis.set(harness.waitlist.lock, "somebody")
    following = harness.poll(1, redelivered=redelivered)
    assert following is not None
    assert (following.generation, following.redelivered) == (1, redelivered)


def test_a_waiting_run_is_not_overdue(harness: WaitlistHarness, clock: Clock) -> None:
    harness.wait("1")
    clock.forward(170)
    assert "run:1" not in harness.runs.heartbeats.overdue()


def test_the_backoff_starts_below_a_second_up_to_its_ceiling(harness: WaitlistHarness) -> None:
    assert poll_backoff(0, 10) <= 1
    assert poll_backoff(60, 10) == 10
    waits = [poll_backoff(attempt, 10) for attempt in range(20)]
    assert waits == sorted(waits)


def test_runs_that_join_while_others_are_resumed_are_resumed(
    harness: WaitlistHarness, backend: FakeBackend, sender: RecordingPublisher
) -> None:
    jobs = [str(number) for number in range(150)]
    for job in jobs:
        harness.detect(job)
    harness.dispatch(jobs[0])
    backend.add_application()  # from here on every poll resumes all runs that wait
    done = threading.Event()

    def poll_on() -> None:
        """A worker with one slot for polls: runs those that are published, and their retries."""
        seen = 0
        mine: list[int] = []
        while not (done.is_set() and not mine and seen == len(sender.of(AWAIT_READY.name))):
            sent = sender.of(AWAIT_READY.name)
            mine += [each.kwargs["generation"] for each in sent[seen:]]
            seen = len(sent)
            for generation in mine[:]:
                mine.remove(generation)
                following = harness.poll(generation)
                if following is not None:
                    mine.append(following.generation)

    pollers = [threading.Thread(target=poll_on) for _ in range(2)]
    for poller in pollers:
        poller.start()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(harness.dispatch, jobs[1:]))
    done.set()
    for poller in pollers:
        poller.join(20)
    assert harness.waiting() == []
    assert set(harness.resumed()) == set(jobs)
    assert len(harness.resumed()) == len(jobs)
    assert len(backend.dispatches) == 1


def test_many_runs_fail_in_one_call_of_redis(
    harness: WaitlistHarness, backend: FakeBackend, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given runs that wait, one of which was stopped meanwhile, and one whose log cannot be written
    jobs = [str(number) for number in range(30)]
    harness.wait(*jobs)
    stop("7", harness.runs)
    redis.hset(logs_history("8"), "not", "a stream")
    calls: list[str] = []
    run_script = Scripts.run
    monkeypatch.setattr(
        Scripts, "run", lambda self, name, *args: (calls.append(name), run_script(self, name, *args))[1]
    )

    # When their pre-processor has failed
    backend.add_application("DEPLOY_FAILED", job=101)
    harness.poll()

    # Then all have ended with the reason, in the backend's order of things: event, log, report
    failed = "Pre-processor deployment failed: serve application reached terminal state (DEPLOY_FAILED)"
    assert {harness.error(job) for job in jobs if job != "7"} == {failed}
    assert harness.error("7") == "stopped"
    assert harness.waiting() == []
    assert redis.zcard(outbox_key()) == len(jobs)
    assert [line.line for line in LogFollower(redis, "3")] == [f"FAILED {failed}"]
    assert len(calls) < 10, calls


def test_a_failed_run_publishes_its_end(harness: WaitlistHarness, redis: FakeRedis) -> None:
    harness.wait("1")
    heard = redis.pubsub(ignore_subscribe_messages=True)
    heard.subscribe(events_channel("1"))
    heard.get_message(timeout=1)
    harness.runs.finish_all(["1"], End(JobStatus.FAILED, {"error": "x"}))
    message = heard.get_message(timeout=5)
    assert json.loads(message["data"]) == {"type": "state", "status": "FAILED", "error": "x"}
