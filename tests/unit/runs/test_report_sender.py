"""Reports are sent when they are due, again until the backend has them, and by one worker at a time."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError as RedisConnectionError
from structlog.testing import capture_logs

from shared.channels import job_key
from shared.messages import DeployMessage, ToTaskMessage
from shared.statuses import JobStatus
from tests.unit.conftest import Clock
from tests.unit.runs.example_workflow import finals, report
from worker.platform import AuthorizationError, ClientError, HTTPError, RateLimitError, ServerError
from worker.runs.keys import (
    RunField,
    heartbeats_key,
    lock_key,
    messages_key,
    outbox_key,
    progress_key,
    run_key,
)
from worker.runs.model import STOPPED, End, Run
from worker.runs.reports import sender as report_sender
from worker.runs.reports.outbox import REPORT
from worker.runs.reports.reporter import LOCKED_SECONDS
from worker.runs.reports.sender import NextAttempt, ReportSender, send_report
from worker.runs.runs import Runs
from worker.testing import FakeBackend

Eventually = Callable[[Callable[[], object]], None]

SUCCEEDED = End(JobStatus.SUCCEEDED, {"serve_application": 1})


@pytest.fixture
def sender(runs: Runs, backend: FakeBackend) -> ReportSender:
    sender = ReportSender(runs, lambda tenant: backend)
    runs.on_report_due = sender.add
    return sender


@pytest.fixture
def hanging(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The jobs whose reports hang, those of the tenant "slow"."""
    update_job, hanging, ended = backend.update_job, [], threading.Event()

    def update(job: str, **fields: Any) -> dict[str, Any]:
        if job.startswith("slow"):
            hanging.append(job)
            assert ended.wait(60)
        return update_job(job, **fields)

    monkeypatch.setattr(backend, "update_job", update)
    yield hanging
    ended.set()


def test_a_change_is_reported(
    runs: Runs, run: Run, sender: ReportSender, backend: FakeBackend, eventually: Eventually
) -> None:
    runs.mark_running(run)

    eventually(lambda: backend.patches)
    assert backend.patches[0]["status"] == JobStatus.RUNNING


def test_changes_after_a_report_follow_it_together(
    runs: Runs, run: Run, sender: ReportSender, backend: FakeBackend, redis: FakeRedis, eventually: Eventually
) -> None:
    runs.mark_running(run)
    eventually(lambda: backend.patches)
    for percent in range(1, 50):
        runs.set_progress(run, "deploy", percent)

    eventually(lambda: redis.zcard(outbox_key()) == 0)

    assert len(backend.patches) == 2


def test_an_end_is_sent_at_once(
    runs: Runs, run: Run, sender: ReportSender, backend: FakeBackend, eventually: Eventually
) -> None:
    runs.set_progress(run, "deploy", 50)
    runs.finish("42", SUCCEEDED)

    eventually(lambda: finals(backend))
    assert len(backend.patches) == 1


def test_an_end_during_a_report_follows_it(
    runs: Runs, run: Run, sender: ReportSender, backend: FakeBackend, eventually: Eventually
) -> None:
    backend.after_patch = lambda: runs.finish("42", SUCCEEDED)
    runs.mark_running(run)

    eventually(lambda: finals(backend))
    assert [patch["status"] for patch in backend.patches] == [JobStatus.RUNNING, JobStatus.SUCCEEDED]


def test_a_run_has_one_reporter_at_a_time(
    runs: Runs, run: Run, backend: FakeBackend, redis: FakeRedis
) -> None:
    runs.mark_running(run)
    redis.set(lock_key("42", REPORT), "another")

    assert report("42", runs, backend) == LOCKED_SECONDS
    assert backend.patches == []


def test_a_report_is_sent_by_one_of_many_workers(
    runs: Runs, run: Run, backend: FakeBackend, eventually: Eventually, redis: FakeRedis
) -> None:
    runs.mark_running(run)
    for _ in range(10):
        ReportSender(runs, lambda tenant: backend).add("42", 0.0)

    eventually(lambda: redis.zcard(outbox_key()) == 0)
    assert len(backend.patches) == 1


@pytest.mark.parametrize("end", [None, SUCCEEDED], ids=["progress", "end"])
def test_a_suspended_and_replaced_reporter_reports_nothing(
    runs: Runs,
    run: Run,
    backend: FakeBackend,
    redis: FakeRedis,
    monkeypatch: pytest.MonkeyPatch,
    end: End | None,
) -> None:
    # Given a report whose sender is suspended until another has reported the end
    runs.mark_running(run)
    if end is not None:
        runs.finish("42", end)
    is_held = runs.report_locks.is_held

    def slow(key: str, token: str) -> bool:
        monkeypatch.setattr(runs.report_locks, "is_held", is_held)
        redis.delete(key)
        runs.finish("42", SUCCEEDED)
        report("42", runs, backend)
        return is_held(key, token)

    monkeypatch.setattr(runs.report_locks, "is_held", slow)

    # When it goes on
    attempt = send_report("42", 0, runs, lambda tenant: backend)
    while attempt is not None:
        attempt = send_report("42", attempt.attempt, runs, lambda tenant: backend)

    # Then the backend hears nothing more
    assert [patch["status"] for patch in backend.patches] == [JobStatus.SUCCEEDED]


def test_the_report_of_an_end_is_retried_until_it_is_taken(
    runs: Runs, run: Run, backend: FakeBackend
) -> None:
    runs.finish("42", SUCCEEDED)
    backend.faults.fail("update_job", ServerError())
    attempt: NextAttempt | None = NextAttempt(0)
    delays = []
    for _ in range(200):
        assert attempt is not None
        attempt = send_report("42", attempt.attempt, runs, lambda tenant: backend)
        delays.append(attempt and attempt.delay)
    backend.faults.recover("update_job")

    assert delays[:8] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert send_report("42", 200, runs, lambda tenant: backend) is None
    assert len(finals(backend)) == 1


@pytest.mark.parametrize(
    ("error", "is_given_up"),
    [(AuthorizationError("no"), True), (HTTPError("gone", status_code=410), True), (ServerError(), False)],
    ids=["403", "410", "500"],
)
def test_an_end_that_is_rejected_for_a_day_is_given_up(
    runs: Runs,
    run: Run,
    backend: FakeBackend,
    redis: FakeRedis,
    clock: Clock,
    error: ClientError,
    is_given_up: bool,
) -> None:
    # Given the end of a run that the backend rejects
    runs.finish("42", SUCCEEDED)
    backend.faults.fail("update_job", error)
    clock.forward(86_000)
    assert send_report("42", 0, runs, lambda tenant: backend) is not None

    # When it still does after a day
    clock.forward(500)
    attempt = send_report("42", 1, runs, lambda tenant: backend)

    # Then nothing more is reported and the run's keys expire; a backend that is down gets it for ever
    assert (attempt is None) is is_given_up
    assert runs.store.is_reported("42") is is_given_up
    assert (redis.ttl(run_key("42")) > 0) is is_given_up
    assert (redis.zscore(heartbeats_key(), "run:42") is None) is is_given_up
    assert (redis.zcard(outbox_key()) == 0) is is_given_up


def test_a_report_comes_again_when_the_backend_asks_for_it(
    runs: Runs, run: Run, backend: FakeBackend, clock: Clock
) -> None:
    runs.mark_running(run)
    backend.faults.fail("update_job", RateLimitError(retry_after=200))

    attempt = send_report("42", 0, runs, lambda tenant: backend)
    clock.forward(199)

    assert attempt == NextAttempt(200, 1)
    assert runs.outbox.take_over() == []


def test_a_scheduled_report_is_a_heartbeat(runs: Runs, run: Run, backend: FakeBackend, clock: Clock) -> None:
    runs.finish("42", SUCCEEDED)
    backend.faults.fail("update_job", ServerError())
    clock.forward(60)

    send_report("42", 9, runs, lambda tenant: backend)
    clock.forward(60)

    assert runs.heartbeats.overdue() == []


def test_a_report_is_retried_while_redis_is_unavailable(
    runs: Runs, run: Run, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise RedisConnectionError("away")

    monkeypatch.setattr(runs.outbox, "claim", away)

    assert send_report("42", 3, runs, lambda tenant: backend) == NextAttempt(1.0, 3)


def test_a_report_of_a_newer_run_is_left_to_newer_workers(
    runs: Runs, run: Run, backend: FakeBackend, redis: FakeRedis, clock: Clock
) -> None:
    # Given a run whose message has a field that this release does not know
    runs.events.message("42", "hello")
    stored = json.loads(redis.hget(run_key("42"), RunField.MESSAGE))
    stored["kwargs"]["dry_run"] = True
    known = redis.hget(run_key("42"), RunField.MESSAGE)
    redis.hset(run_key("42"), RunField.MESSAGE, json.dumps(stored))

    # When this worker is to report it
    attempt = send_report("42", 0, runs, lambda tenant: backend)

    # Then another one finds all of it in the outbox
    assert (attempt, backend.logs) == (None, [])
    clock.forward(6)
    assert runs.outbox.take_over() == ["42"]
    redis.hset(run_key("42"), RunField.MESSAGE, known)
    report("42", runs, backend)
    assert [entry["data"]["content"] for entry in backend.logs] == ["hello"]


def test_a_report_that_is_left_to_newer_workers_is_logged_once(
    runs: Runs, run: Run, backend: FakeBackend, redis: FakeRedis
) -> None:
    # Given a run of a newer release
    runs.events.message("42", "hello")
    stored = json.loads(redis.hget(run_key("42"), RunField.MESSAGE))
    stored["kwargs"]["unknown"] = True
    redis.hset(run_key("42"), RunField.MESSAGE, json.dumps(stored))
    report_sender._left_to_newer.clear()

    # When this worker finds its report again and again, then the log says so once
    with capture_logs() as lines:
        for _ in range(3):
            send_report("42", 0, runs, lambda tenant: backend)
    assert [line["job"] for line in lines] == ["42"]


def test_a_worker_that_stops_leaves_its_reports_to_others(
    runs: Runs, run: Run, sender: ReportSender, clock: Clock
) -> None:
    runs.set_progress(run, "deploy", 50)

    sender.hand_over()
    clock.forward(1.1)

    assert runs.outbox.take_over() == ["42"]


def test_a_backend_that_hangs_for_a_tenant_holds_up_no_other(
    runs: Runs,
    run: Run,
    deploy: DeployMessage,
    sender: ReportSender,
    backend: FakeBackend,
    hanging: list[str],
    eventually: Eventually,
) -> None:
    # Given more hanging reports of a tenant than there are threads
    for number in range(2 * report_sender.MAX_THREADS):
        message = deploy.model_copy(update={"job": f"slow{number}", "tenant": "slow"})
        runs.store.accept(message, "deploy")
        runs.mark_running(runs.store.load(f"slow{number}"))
    eventually(lambda: len(hanging) == report_sender.MAX_THREADS_PER_TENANT)

    # When something of another tenant is to be reported
    runs.mark_running(run)

    # Then it is
    eventually(lambda: backend.patches)
    assert len(hanging) == report_sender.MAX_THREADS_PER_TENANT


def test_threads_end_when_there_is_nothing_to_report(
    runs: Runs,
    run: Run,
    sender: ReportSender,
    backend: FakeBackend,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(report_sender, "IDLE_SECONDS", 0.05)
    # Given a process that has sent a report
    runs.mark_running(run)
    eventually(lambda: backend.patches)

    # When there is nothing more to send, then it has no thread of the sender
    eventually(lambda: sender._threads == 0)

    # And a later report has a thread again
    runs.finish("42", SUCCEEDED)
    eventually(lambda: finals(backend))
    assert [patch["status"] for patch in finals(backend)] == ["SUCCEEDED"]


def test_more_ends_of_a_tenant_than_threads_are_all_reported(
    runs: Runs, backend: FakeBackend, deploy: DeployMessage, eventually: Eventually, redis: FakeRedis
) -> None:
    # Given many runs of one tenant
    runs.on_report_due = ReportSender(runs, lambda tenant: backend).add
    jobs = [f"job{number}" for number in range(5 * report_sender.MAX_THREADS)]
    for job in jobs:
        runs.store.accept(deploy.model_copy(update={"job": job}), "deploy")

    # When all end at once
    assert runs.finish_all(jobs, SUCCEEDED) == jobs

    # Then each end is reported once
    eventually(lambda: redis.zcard(outbox_key()) == 0)
    assert len(finals(backend)) == len(jobs)


@pytest.mark.parametrize(
    ("key", "field", "text"),
    [
        (progress_key("42"), "deploy", "rubbish"),
        (progress_key("42"), "metrics:deploy", "rubbish"),
        (job_key("42"), "overall", "rubbish"),
        (run_key("42"), "message", b"\xff"),
        (run_key("42"), "end", "[]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "binary",
)
def test_damage_beside_the_end_delays_no_end(
    runs: Runs, run: Run, backend: FakeBackend, redis: FakeRedis, key: str, field: str, text: str | bytes
) -> None:
    # Given a run that has ended, of which something is not what any release writes
    runs.events.message("42", "said before")
    runs.finish("42", End(JobStatus.FAILED, {"error": "no room"}))
    redis.hset(key, field, text)
    redis.rpush(messages_key("42"), "rubbish", "[]")

    # When its end is reported
    assert send_report("42", 0, runs, lambda tenant: backend) is None

    # Then the backend has it, and nothing is due any more
    (final,) = finals(backend)
    assert (final["status"], final["result"]) == ("FAILED", {"error": "no room"})
    assert redis.zcard(outbox_key()) == 0


def test_a_stopped_run_with_damaged_counts_is_reported(
    runs: Runs, to_task: ToTaskMessage, backend: FakeBackend, redis: FakeRedis
) -> None:
    runs.store.accept(to_task, "to_task")
    runs.store.mark_running("42")
    redis.hset(job_key("42"), "total", "rubbish")
    runs.finish("42", STOPPED)
    redis.hset(run_key("42"), RunField.POSITION, 1)

    assert send_report("42", 0, runs, lambda tenant: backend) is None

    (final,) = finals(backend)
    assert (final["status"], final["result"]) == ("STOPPED", {"error": "stopped"})


def test_an_end_that_is_not_legible_is_reported_as_failed(
    runs: Runs, run: Run, backend: FakeBackend, redis: FakeRedis
) -> None:
    runs.finish("42", SUCCEEDED)
    redis.hset(run_key("42"), RunField.ENDED, "rubbish")
    redis.hset(job_key("42"), "status", "rubbish")

    assert send_report("42", 0, runs, lambda tenant: backend) is None

    (final,) = finals(backend)
    assert (final["status"], "damaged" in final["result"]["error"]) == ("FAILED", True)
    assert redis.zcard(outbox_key()) == 0
