"""What the backend gets of a run, and when."""

from typing import Any

import pytest
from fakeredis import FakeRedis

from shared.messages import ToTaskMessage
from shared.statuses import JobStatus
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.conftest import Clock
from tests.unit.runs.example_workflow import finals, report
from worker.platform import (
    ClientTimeoutError,
    HTTPError,
    NotFoundError,
    ServerError,
    ValidationError,
)
from worker.runs.keys import RunField, patched_key, run_key
from worker.runs.model import End, Run
from worker.runs.runs import Runs
from worker.testing import FakeBackend


def reject_whole_reports(backend: FakeBackend, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend takes no records, and no long result."""
    update_job = backend.update_job

    def rejecting(job: str, **fields: Any) -> dict[str, Any]:
        if "progress_record" in fields or len(str(fields)) > 1_000:
            raise error
        return update_job(job, **fields)

    monkeypatch.setattr(backend, "update_job", rejecting)


def test_first_report_says_running(runs: Runs, run: Run, backend: FakeBackend) -> None:
    runs.mark_running(run)

    report("42", runs, backend)

    assert backend.patches[0]["status"] == JobStatus.RUNNING


def test_running_is_reported_once(runs: Runs, run: Run, backend: FakeBackend, clock: Clock) -> None:
    runs.mark_running(run)
    report("42", runs, backend)
    clock.forward(2)
    runs.set_progress(run, "deploy", 50)

    report("42", runs, backend)

    assert ["status" in patch for patch in backend.patches] == [True, False]


def test_second_report_within_a_second_waits(runs: Runs, run: Run, backend: FakeBackend) -> None:
    runs.mark_running(run)
    report("42", runs, backend)
    runs.set_progress(run, "deploy", 50)

    wait = report("42", runs, backend)

    assert wait is not None
    assert 0 < wait <= 1
    assert len(backend.patches) == 1


def test_change_during_the_patch_is_reported_after_it(runs: Runs, run: Run, backend: FakeBackend) -> None:
    runs.mark_running(run)
    original = backend.update_job

    def change(job: str, **fields: Any) -> dict[str, Any]:
        runs.set_progress(run, "deploy", 60)
        return original(job, **fields)

    backend.update_job = change  # type: ignore[method-assign]

    assert report("42", runs, backend) == 1.0


def test_nothing_new_ends_the_reporting(runs: Runs, run: Run, backend: FakeBackend) -> None:
    runs.mark_running(run)

    assert report("42", runs, backend) is None


def test_copy_of_a_report_sends_nothing_twice(
    runs: Runs, run: Run, backend: FakeBackend, clock: Clock
) -> None:
    runs.mark_running(run)
    report("42", runs, backend)
    clock.forward(2)

    assert report("42", runs, backend) is None
    assert len(backend.patches) == 1


def test_overall_never_falls(runs: Runs, run: Run, backend: FakeBackend, clock: Clock) -> None:
    runs.set_progress(run, "register", 50)
    report("42", runs, backend)
    clock.forward(2)
    runs.set_progress(run, "deploy", 10)
    runs.finish("42", End(JobStatus.FAILED, {"error": "x"}))
    report("42", runs, backend)

    overalls = [patch["progress_record"]["current_progress"]["overall"] for patch in backend.patches]
    assert overalls == sorted(overalls)
    assert len(overalls) == 2


def test_end_is_one_final_patch_with_its_result(runs: Runs, run: Run, backend: FakeBackend) -> None:
    runs.finish("42", End(JobStatus.SUCCEEDED, {"serve_application": 7}))

    assert report("42", runs, backend) is None

    (final,) = finals(backend)
    assert (final["status"], final["result"]) == (JobStatus.SUCCEEDED, {"serve_application": 7})
    assert final["progress_record"]["current_progress"]["overall"] == 100


def test_end_does_not_wait_for_the_second_to_pass(runs: Runs, run: Run, backend: FakeBackend) -> None:
    runs.mark_running(run)
    report("42", runs, backend)
    runs.finish("42", End(JobStatus.FAILED, {"error": "x"}))

    report("42", runs, backend)

    assert len(finals(backend)) == 1


def test_final_status_is_sent_once(runs: Runs, run: Run, backend: FakeBackend) -> None:
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    report("42", runs, backend)

    report("42", runs, backend)

    assert len(backend.patches) == 1


def test_nothing_follows_the_end(
    runs: Runs, run: Run, backend: FakeBackend, publisher: RecordingPublisher, clock: Clock
) -> None:
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    report("42", runs, backend)
    publisher.published.clear()
    clock.forward(100)

    runs.mark_running(run)
    runs.set_progress(run, "deploy", 100)
    runs.set_metrics(run, "deploy", success=1)
    runs.events.message("42", "late")

    assert publisher.published == []
    assert report("42", runs, backend) is None
    assert len(backend.patches) == 1


def test_end_stays_unreported_while_the_backend_is_down(runs: Runs, run: Run, backend: FakeBackend) -> None:
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    backend.faults.fail("update_job", ServerError())

    with pytest.raises(ServerError):
        report("42", runs, backend)
    backend.faults.recover("update_job")
    report("42", runs, backend)

    assert len(finals(backend)) == 1
    assert runs.store.is_reported("42")


def test_failed_progress_report_is_sent_again(
    runs: Runs, run: Run, backend: FakeBackend, clock: Clock
) -> None:
    runs.mark_running(run)
    backend.faults.fail("update_job", ClientTimeoutError())
    with pytest.raises(ClientTimeoutError):
        report("42", runs, backend)
    backend.faults.recover("update_job")
    clock.forward(2)

    report("42", runs, backend)

    assert backend.patches[0]["status"] == JobStatus.RUNNING


def test_job_unknown_to_the_backend_counts_as_reported(runs: Runs, run: Run, backend: FakeBackend) -> None:
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    backend.faults.fail("update_job", NotFoundError())

    report("42", runs, backend)

    assert runs.store.is_reported("42")


def test_end_that_the_backend_has_counts_as_reported(runs: Runs, run: Run, backend: FakeBackend) -> None:
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    backend.faults.fail("update_job", ValidationError())
    backend.jobs["42"] = "STOPPED"

    report("42", runs, backend)

    assert runs.store.is_reported("42")


def test_end_rejected_while_the_job_runs_is_retried(runs: Runs, run: Run, backend: FakeBackend) -> None:
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    backend.faults.fail("update_job", ValidationError())

    with pytest.raises(ValidationError):
        report("42", runs, backend)

    assert not runs.store.is_reported("42")


@pytest.mark.parametrize(
    "error", [HTTPError("413 Payload Too Large", 413), ValidationError(), ValidationError("", 422)]
)
def test_end_too_large_for_the_backend_is_sent_minimal(
    runs: Runs, run: Run, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    reject_whole_reports(backend, error, monkeypatch)
    runs.finish("42", End(JobStatus.FAILED, {"error": "y" * 5_000}))

    assert report("42", runs, backend) is None

    assert backend.patches == [{"status": JobStatus.FAILED, "result": {"error": "y" * 299 + "…"}}]
    assert runs.store.is_reported("42")


def test_minimal_end_of_a_to_task_keeps_its_counts(
    runs: Runs, to_task: ToTaskMessage, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.store.accept(to_task, "to_task")
    reject_whole_reports(backend, HTTPError("413 Payload Too Large", 413), monkeypatch)
    failures = [{"task_id": task, "error": "y" * 400} for task in range(1_000)]
    counts = {"total_tasks": 2_000, "success_count": 1_000, "failed_count": 1_000}
    result = {"status": "SUCCEEDED", "message": "Annotated 1000 of 2000 tasks", **counts}
    runs.finish("42", End(JobStatus.SUCCEEDED, {**result, "failures": failures}))

    report("42", runs, backend)

    assert [patch["result"] for patch in backend.patches] == [{**result, "failures": []}]


def test_end_that_failed_otherwise_is_not_sent_minimal(runs: Runs, run: Run, backend: FakeBackend) -> None:
    runs.finish("42", End(JobStatus.FAILED, {"error": "x"}))
    backend.faults.fail("update_job", HTTPError("409 Conflict", 409))

    with pytest.raises(HTTPError):
        report("42", runs, backend)

    assert (backend.faults.calls["update_job"], backend.faults.calls["create_logs"]) == (1, 0)


def test_job_stopped_in_the_backend_stops_the_run(runs: Runs, run: Run, backend: FakeBackend) -> None:
    runs.mark_running(run)
    report("42", runs, backend)
    runs.redis.delete(patched_key("42"))
    backend.jobs["42"] = "STOPPED"
    runs.set_progress(run, "deploy", 10)

    wait = report("42", runs, backend)

    end = runs.store.load("42").end
    assert end is not None
    assert end.status is JobStatus.STOPPED
    assert wait == 1.0


def test_job_stopped_at_a_backend_that_rejects_progress_stops(
    runs: Runs, run: Run, backend: FakeBackend
) -> None:
    runs.mark_running(run)
    backend.faults.fail("update_job", ValidationError())
    backend.jobs["42"] = "STOPPED"

    report("42", runs, backend)

    assert runs.store.has_ended("42")


def test_report_of_an_unknown_job_does_nothing(runs: Runs, backend: FakeBackend) -> None:
    assert report("nobody", runs, backend) is None
    assert not backend.faults.calls


def test_the_second_between_patches_counts_from_the_arrival(
    runs: Runs, run: Run, backend: FakeBackend, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.mark_running(run)
    update_job = backend.update_job

    def late(job: str, **fields: Any) -> dict[str, Any]:
        clock.forward(0.7)
        return update_job(job, **fields)

    monkeypatch.setattr(backend, "update_job", late)
    report("42", runs, backend)
    runs.set_progress(run, "deploy", 50)
    clock.forward(0.7)

    assert (report("42", runs, backend) or 0) > 0
    assert len(backend.patches) == 1


def test_nothing_is_kept_of_what_was_reported(
    runs: Runs, run: Run, backend: FakeBackend, redis: FakeRedis
) -> None:
    runs.mark_running(run)
    before = set(redis.hkeys(run_key("42")))

    report("42", runs, backend)

    assert set(redis.hkeys(run_key("42"))) == before - {RunField.VERSION} | {RunField.RUNNING_SENT}


def test_a_late_acknowledgement_hides_no_later_change(runs: Runs, run: Run, backend: FakeBackend) -> None:
    # Given a reporter that was suspended, while another one reported and all was forgotten
    runs.mark_running(run)
    suspended = runs.outbox.claim("42", "suspended")
    assert suspended.lease is not None
    runs.report_locks.release(suspended.lease)
    runs.redis.delete(patched_key("42"))
    assert report("42", runs, backend) is None
    runs.set_progress(run, "deploy", 50)

    # When it acknowledges what it has sent
    assert runs.outbox.acknowledge("42", suspended.lease, suspended.version)

    # Then the change is reported nevertheless
    runs.redis.delete(patched_key("42"))
    report("42", runs, backend)
    assert backend.patches[-1]["progress_record"]["current_progress"]["percent"] == 50


def test_a_change_after_an_older_workers_report_is_reported(
    runs: Runs, run: Run, backend: FakeBackend, redis: FakeRedis
) -> None:
    redis.hset(run_key("42"), mapping={"version": 3, "version_sent": 3, "running_sent": 1})
    assert report("42", runs, backend) is None
    assert backend.patches == []

    runs.set_progress(run, "deploy", 50)
    report("42", runs, backend)

    assert ["status" in patch for patch in backend.patches] == [False]
    assert RunField.VERSION_SENT not in redis.hgetall(run_key("42"))
