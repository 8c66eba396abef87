"""The outbox: what the backend hears of a run."""

from typing import Any

import pytest
from fakeredis import FakeRedis
from kombu.exceptions import OperationalError

from shared.channels import job_key
from shared.messages import DeployMessage, ToTaskMessage
from shared.statuses import JobStatus
from tests.unit.conftest import Clock
from tests.unit.runs.runs_helpers import RecordingSender
from worker.platform import (
    ClientConnectionError,
    ClientTimeoutError,
    HTTPError,
    NotFoundError,
    ServerError,
)
from worker.platform import ValidationError as RefusedError
from worker.runs.keys import messages_key, progress_key, run_key
from worker.runs.model import End, Run, Step
from worker.runs.reporter import report_run, stop_run
from worker.runs.runs import Runs

DAY = 86_400


class Backend:
    """A backend that remembers, answers with its job, and fails when told."""

    def __init__(self) -> None:
        self.patches: list[dict[str, Any]] = []
        self.logs: list[dict[str, Any]] = []
        self.calls: list[str] = []
        self.status = "RUNNING"
        self.patch_error: Exception | None = None
        self.log_error: Exception | None = None

    def get_job(self, job: str) -> dict[str, Any]:
        return {"id": job, "status": self.status}

    def update_job(self, job: str, **fields: Any) -> dict[str, Any]:
        self.calls.append("patch")
        if self.patch_error is not None:
            raise self.patch_error
        self.patches.append(fields)
        return {"id": job, "status": fields.get("status", self.status)}

    def create_logs(self, entries: list[dict[str, Any]]) -> None:
        self.calls.append("logs")
        if self.log_error is not None:
            raise self.log_error
        self.logs.extend(entries)


@pytest.fixture
def backend() -> Backend:
    return Backend()


def finals(backend: Backend) -> list[dict[str, Any]]:
    return [patch for patch in backend.patches if "result" in patch]


def test_first_report_says_running(runs: Runs, run: Run, backend: Backend) -> None:
    runs.mark_running(run)

    report_run("42", runs, backend)

    assert backend.patches[0]["status"] == JobStatus.RUNNING


def test_running_is_said_once(runs: Runs, run: Run, backend: Backend, clock: Clock) -> None:
    runs.mark_running(run)
    report_run("42", runs, backend)
    clock.forward(2)
    runs.set_progress(run, "deploy", 50)

    report_run("42", runs, backend)

    assert ["status" in patch for patch in backend.patches] == [True, False]


def test_second_report_within_a_second_waits(runs: Runs, run: Run, backend: Backend) -> None:
    runs.mark_running(run)
    report_run("42", runs, backend)
    runs.set_progress(run, "deploy", 50)

    wait = report_run("42", runs, backend)

    assert wait is not None
    assert 0 < wait <= 1
    assert len(backend.patches) == 1


def test_many_changes_are_one_message_and_one_patch(
    runs: Runs, run: Run, backend: Backend, sender: RecordingSender
) -> None:
    runs.mark_running(run)
    for percent in range(1, 100):
        runs.set_progress(run, "deploy", percent)

    report_run("42", runs, backend)

    assert len(sender.of("runs.report")) == 1
    assert [
        patch["progress_record"]["record"]["steps"]["deploy"]["percent"] for patch in backend.patches
    ] == [99]


def test_change_during_the_patch_is_reported_after_it(runs: Runs, run: Run, backend: Backend) -> None:
    runs.mark_running(run)
    original = backend.update_job

    def change(job: str, **fields: Any) -> dict[str, Any]:
        runs.set_progress(run, "deploy", 60)
        return original(job, **fields)

    backend.update_job = change  # type: ignore[method-assign]

    assert report_run("42", runs, backend) == 1.0


def test_nothing_new_ends_the_reporting(runs: Runs, run: Run, backend: Backend) -> None:
    runs.mark_running(run)

    assert report_run("42", runs, backend) is None


def test_change_after_the_reporting_ended_publishes_the_next(
    runs: Runs, run: Run, backend: Backend, sender: RecordingSender
) -> None:
    runs.mark_running(run)
    report_run("42", runs, backend)

    runs.set_progress(run, "deploy", 10)

    assert len(sender.of("runs.report")) == 2


def test_copy_of_a_report_sends_nothing_twice(runs: Runs, run: Run, backend: Backend, clock: Clock) -> None:
    runs.mark_running(run)
    report_run("42", runs, backend)
    clock.forward(2)

    assert report_run("42", runs, backend) is None
    assert len(backend.patches) == 1


def test_report_that_got_lost_is_published_again_after_a_while(
    runs: Runs, run: Run, sender: RecordingSender, clock: Clock
) -> None:
    runs.mark_running(run)
    clock.forward(runs.timing.heartbeat_grace_seconds + 1)

    runs.set_progress(run, "deploy", 10)

    assert len(sender.of("runs.report")) == 2


def test_overall_never_falls(runs: Runs, run: Run, backend: Backend, clock: Clock) -> None:
    runs.set_progress(run, "register", 50)
    report_run("42", runs, backend)
    clock.forward(2)
    runs.set_progress(run, "deploy", 10)
    runs.finish("42", End(JobStatus.FAILED, {"error": "x"}))
    report_run("42", runs, backend)

    overalls = [patch["progress_record"]["current_progress"]["overall"] for patch in backend.patches]
    assert overalls == sorted(overalls)
    assert len(overalls) == 2


def test_end_is_one_final_patch_with_its_result(runs: Runs, run: Run, backend: Backend) -> None:
    runs.finish("42", End(JobStatus.SUCCEEDED, {"serve_application": 7}))

    assert report_run("42", runs, backend) is None

    (final,) = finals(backend)
    assert (final["status"], final["result"]) == (JobStatus.SUCCEEDED, {"serve_application": 7})
    assert final["progress_record"]["current_progress"]["overall"] == 100


def test_end_does_not_wait_for_the_second_to_pass(runs: Runs, run: Run, backend: Backend) -> None:
    runs.mark_running(run)
    report_run("42", runs, backend)
    runs.finish("42", End(JobStatus.FAILED, {"error": "x"}))

    report_run("42", runs, backend)

    assert len(finals(backend)) == 1


def test_final_status_is_sent_once(runs: Runs, run: Run, backend: Backend) -> None:
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    report_run("42", runs, backend)

    report_run("42", runs, backend)

    assert len(backend.patches) == 1


def test_nothing_follows_the_end(
    runs: Runs, run: Run, backend: Backend, sender: RecordingSender, clock: Clock
) -> None:
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    report_run("42", runs, backend)
    sender.sent.clear()
    clock.forward(100)

    runs.mark_running(run)
    runs.set_progress(run, "deploy", 100)
    runs.set_metrics(run, "deploy", success=1)
    runs.events.message("42", "late")

    assert sender.sent == []
    assert report_run("42", runs, backend) is None
    assert len(backend.patches) == 1


def test_late_start_does_not_undo_a_stop(runs: Runs, run: Run, redis: FakeRedis) -> None:
    stop_run("42", runs)

    runs.mark_running(run)

    assert redis.hget(job_key("42"), "status") == "STOPPED"


def test_backend_that_is_down_leaves_the_end_unsealed(runs: Runs, run: Run, backend: Backend) -> None:
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    backend.patch_error = ServerError()

    with pytest.raises(ServerError):
        report_run("42", runs, backend)
    backend.patch_error = None
    report_run("42", runs, backend)

    assert len(finals(backend)) == 1
    assert runs.store.is_reported("42")


def test_failed_progress_report_is_sent_again(runs: Runs, run: Run, backend: Backend, clock: Clock) -> None:
    runs.mark_running(run)
    backend.patch_error = ClientTimeoutError()
    with pytest.raises(ClientTimeoutError):
        report_run("42", runs, backend)
    backend.patch_error = None
    clock.forward(2)

    report_run("42", runs, backend)

    assert backend.patches[0]["status"] == JobStatus.RUNNING


def test_job_that_the_backend_does_not_know_is_sealed(runs: Runs, run: Run, backend: Backend) -> None:
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    backend.patch_error = NotFoundError()

    report_run("42", runs, backend)

    assert runs.store.is_reported("42")


def test_end_that_the_backend_has_already_is_sealed(runs: Runs, run: Run, backend: Backend) -> None:
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    backend.patch_error, backend.status = RefusedError(), "STOPPED"

    report_run("42", runs, backend)

    assert runs.store.is_reported("42")


def test_end_that_the_backend_refuses_while_the_job_runs_comes_back(
    runs: Runs, run: Run, backend: Backend
) -> None:
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    backend.patch_error = RefusedError()

    with pytest.raises(RefusedError):
        report_run("42", runs, backend)

    assert not runs.store.is_reported("42")


def refuse_whole_reports(backend: Backend, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend takes no records, and no long result."""
    update_job = backend.update_job

    def refusing(job: str, **fields: Any) -> dict[str, Any]:
        if "progress_record" in fields or len(str(fields)) > 1_000:
            raise error
        return update_job(job, **fields)

    monkeypatch.setattr(backend, "update_job", refusing)


@pytest.mark.parametrize(
    "error", [HTTPError("413 Payload Too Large", 413), RefusedError(), RefusedError("", 422)]
)
def test_end_that_is_too_much_for_the_backend_is_sent_with_the_least(
    runs: Runs, run: Run, backend: Backend, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    refuse_whole_reports(backend, error, monkeypatch)
    runs.finish("42", End(JobStatus.FAILED, {"error": "y" * 5_000}))

    assert report_run("42", runs, backend) is None

    assert backend.patches == [{"status": JobStatus.FAILED, "result": {"error": "y" * 299 + "…"}}]
    assert runs.store.is_reported("42")


def test_end_of_a_to_task_that_is_too_much_for_the_backend_keeps_its_counts(
    runs: Runs, to_task: ToTaskMessage, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.store.accept(to_task, "to_task")
    refuse_whole_reports(backend, HTTPError("413 Payload Too Large", 413), monkeypatch)
    failures = [{"task_id": task, "error": "y" * 400} for task in range(1_000)]
    counts = {"total_tasks": 2_000, "success_count": 1_000, "failed_count": 1_000}
    result = {"status": "SUCCEEDED", "message": "Annotated 1000 of 2000 tasks", **counts}
    runs.finish("42", End(JobStatus.SUCCEEDED, {**result, "failures": failures}))

    report_run("42", runs, backend)

    assert [patch["result"] for patch in backend.patches] == [{**result, "failures": []}]


def test_end_that_cannot_be_told_is_not_sent_with_the_least(runs: Runs, run: Run, backend: Backend) -> None:
    runs.finish("42", End(JobStatus.FAILED, {"error": "x"}))
    backend.patch_error = HTTPError("409 Conflict", 409)

    with pytest.raises(HTTPError):
        report_run("42", runs, backend)

    assert backend.calls == ["patch"]


def test_job_stopped_in_the_backend_stops_the_run(runs: Runs, run: Run, backend: Backend) -> None:
    runs.mark_running(run)
    report_run("42", runs, backend)
    runs.redis.hdel(run_key("42"), "patched")
    backend.status = "STOPPED"
    runs.set_progress(run, "deploy", 10)

    wait = report_run("42", runs, backend)

    end = runs.store.load("42").end
    assert end is not None
    assert end.status is JobStatus.STOPPED
    assert wait == 1.0


def test_job_stopped_in_a_backend_that_refuses_progress_stops_the_run(
    runs: Runs, run: Run, backend: Backend
) -> None:
    runs.mark_running(run)
    backend.patch_error, backend.status = RefusedError(), "STOPPED"

    report_run("42", runs, backend)

    assert runs.store.has_ended("42")


def test_messages_go_out_in_their_order_before_the_end(runs: Runs, run: Run, backend: Backend) -> None:
    for number in range(250):
        runs.events.message("42", str(number), step="deploy")
    runs.finish("42", End(JobStatus.FAILED, {"error": "x"}))

    report_run("42", runs, backend)

    assert [entry["data"]["content"] for entry in backend.logs] == [str(number) for number in range(250)]
    assert backend.calls[-1] == "patch"


def test_message_is_an_entry_to_the_letter(runs: Runs, run: Run, backend: Backend) -> None:
    runs.events.message("42", "half", step="deploy", level="warning")

    report_run("42", runs, backend)

    entry = backend.logs[0]
    assert {key: entry[key] for key in entry.keys() - {"datetime"}} == {
        "event": "message",
        "data": {"content": "half"},
        "job": 42,
        "step": "deploy",
        "level": "warning",
    }


def test_what_comes_as_the_end_is_reported_leaves_no_key_that_stays(
    runs: Runs, run: Run, backend: Backend, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given steps that were told, right before the end was reported, that the run lives
    runs.finish("42", End(JobStatus.FAILED, {"error": "x"}))
    report_run("42", runs, backend)
    monkeypatch.setattr(redis, "hexists", lambda *_: False)
    monkeypatch.setattr(runs.store, "has_ended", lambda _: False)

    runs.events.message("42", "late")
    runs.set_metrics(run, "deploy", success=1)
    runs.events.requeue_messages("42", [{"event": "message"}])

    assert not redis.exists(messages_key("42"), progress_key("42"))
    assert {key: redis.ttl(key) for key in redis.keys("synapse:jobs:*") if redis.ttl(key) < 0} == {}


def test_message_of_an_unknown_run_is_not_kept(runs: Runs, redis: FakeRedis, sender: RecordingSender) -> None:
    runs.events.message("nobody", "hello")

    assert redis.keys("*") == []
    assert sender.sent == []


def test_message_gets_a_report_of_its_own(runs: Runs, run: Run, sender: RecordingSender) -> None:
    runs.events.message("42", "hello")

    assert len(sender.of("runs.report")) == 1


def test_messages_that_were_not_delivered_keep_their_order(runs: Runs, run: Run, backend: Backend) -> None:
    for text in ("one", "two"):
        runs.events.message("42", text)
    backend.log_error = ClientConnectionError()
    with pytest.raises(ClientConnectionError):
        report_run("42", runs, backend)
    runs.events.message("42", "three")
    backend.log_error = None

    report_run("42", runs, backend)

    assert [entry["data"]["content"] for entry in backend.logs] == ["one", "two", "three"]


def test_message_whose_answer_was_lost_is_not_sent_twice(runs: Runs, run: Run, backend: Backend) -> None:
    runs.events.message("42", "one")
    backend.log_error = ClientTimeoutError()

    report_run("42", runs, backend)
    backend.log_error = None
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    report_run("42", runs, backend)

    assert backend.calls.count("logs") == 1
    assert len(finals(backend)) == 1


def test_secret_in_a_message_is_masked(runs: Runs, run: Run, backend: Backend, redis: FakeRedis) -> None:
    runs.events.message("42", "Authorization: Token 0123456789abcdef")

    assert "0123456789abcdef" not in str(redis.lrange(messages_key("42"), 0, -1))


def test_keys_expire_a_day_after_the_end_was_reported(
    runs: Runs, run: Run, backend: Backend, redis: FakeRedis
) -> None:
    runs.set_progress(run, "deploy", 10)
    redis.set("synapse:jobs:{42}:ledger", 1)
    runs.store.expire_with_run("42", "synapse:jobs:{42}:ledger")
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    assert [redis.ttl(key) for key in redis.keys("synapse:jobs:*")] == [-1] * len(
        redis.keys("synapse:jobs:*")
    )

    report_run("42", runs, backend)

    ttls = {key: redis.ttl(key) for key in redis.keys("synapse:jobs:*")}
    assert len(ttls) >= 5
    assert all(DAY - 5 < ttl <= DAY for ttl in ttls.values()), ttls


def test_reported_run_is_expected_no_longer(runs: Runs, run: Run, backend: Backend) -> None:
    runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    report_run("42", runs, backend)

    assert runs.redis.zcard("synapse:live") == 0


def test_end_is_written_once_and_the_first_wins(runs: Runs, run: Run) -> None:
    assert runs.finish("42", End(JobStatus.STOPPED, {"error": "stopped"}))
    assert not runs.finish("42", End(JobStatus.SUCCEEDED, {}))

    end = runs.store.load("42").end
    assert end == End(JobStatus.STOPPED, {"error": "stopped"})


def test_stop_of_a_deploy_has_the_contracts_result(runs: Runs, run: Run) -> None:
    stop_run("42", runs)

    assert runs.store.load("42").end == End(JobStatus.STOPPED, {"error": "stopped"})


def test_stop_before_its_to_task_has_the_contracts_result(
    runs: Runs, to_task: ToTaskMessage, backend: Backend
) -> None:
    runs.store.remember_stop("42")
    runs.store.accept(to_task, "to_task")

    report_run("42", runs, backend)

    (final,) = finals(backend)
    assert final["result"] == {
        "error": "stopped",
        "status": JobStatus.STOPPED,
        "message": "stopped",
        "total_tasks": 0,
        "success_count": 0,
        "failed_count": 0,
        "failures": [],
    }


def test_tasks_that_are_recorded_while_the_stop_is_written_count(
    runs: Runs, to_task: ToTaskMessage, backend: Backend, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a task that is recorded in the moment before the end is
    runs.store.accept(to_task, "to_task")
    redis.hset(job_key("42"), mapping={"total": 10, "success": 3})
    finish = runs.store.finish

    def late(job: str, end: End, step: Step | None = None) -> bool:
        redis.hincrby(job_key("42"), "success", 1)
        return finish(job, end, step)

    monkeypatch.setattr(runs.store, "finish", late)

    # When the run is stopped
    stop_run("42", runs)
    report_run("42", runs, backend)

    # Then it counts
    (final,) = finals(backend)
    assert final["result"]["success_count"] == 4


def test_stop_of_a_to_task_has_the_counts_so_far(
    runs: Runs, to_task: ToTaskMessage, backend: Backend, redis: FakeRedis
) -> None:
    runs.store.accept(to_task, "to_task")
    redis.hset(job_key("42"), mapping={"total": 10, "success": 3, "failed": 1})

    stop_run("42", runs)
    report_run("42", runs, backend)

    (final,) = finals(backend)
    assert final["result"] == {
        "status": "STOPPED",
        "message": "stopped",
        "total_tasks": 10,
        "success_count": 3,
        "failed_count": 1,
        "failures": [],
        "error": "stopped",
    }


def test_report_of_an_unknown_job_does_nothing(runs: Runs, backend: Backend) -> None:
    assert report_run("nobody", runs, backend) is None
    assert backend.calls == []


def test_text_ids_stay_text_in_log_entries(runs: Runs, backend: Backend) -> None:
    message = DeployMessage.model_validate({"job": "007", "plugin": "a@1", "agent": 1})
    runs.store.accept(message, "deploy")
    runs.events.message("007", "hello")

    report_run("007", runs, backend)

    assert backend.logs[0]["job"] == "007"


def test_late_messages_of_an_ended_run_send_no_further_reports(
    runs: Runs, run: Run, sender: RecordingSender
) -> None:
    runs.finish("42", End(JobStatus.FAILED, {"error": "x"}))
    sent = len(sender.of("runs.report"))

    runs.ensure_end_reported("42")
    runs.ensure_end_reported("42")

    assert len(sender.of("runs.report")) == sent


def test_end_whose_report_could_not_be_published_is_published_by_the_next_message(
    runs: Runs, run: Run, sender: RecordingSender
) -> None:
    sender.broken = True
    with pytest.raises(OperationalError):
        runs.finish("42", End(JobStatus.FAILED, {"error": "x"}))
    sender.broken = False

    runs.ensure_end_reported("42")

    assert len(sender.of("runs.report")) == 1


def test_the_second_between_patches_counts_from_the_arrival(
    runs: Runs, run: Run, backend: Backend, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.mark_running(run)
    update_job = backend.update_job

    def late(job: str, **fields: Any) -> dict[str, Any]:
        clock.forward(0.7)
        return update_job(job, **fields)

    monkeypatch.setattr(backend, "update_job", late)
    report_run("42", runs, backend)
    runs.set_progress(run, "deploy", 50)
    clock.forward(0.7)

    assert (report_run("42", runs, backend) or 0) > 0
    assert len(backend.patches) == 1


def test_stop_of_a_to_task_under_another_actions_name_has_the_counts(
    runs: Runs, to_task: ToTaskMessage, backend: Backend
) -> None:
    runs.store.accept(to_task.model_copy(update={"action": "pre_annotate"}), "to_task")

    stop_run("42", runs)
    report_run("42", runs, backend)

    (final,) = finals(backend)
    assert (final["result"]["total_tasks"], final["result"]["error"]) == (0, "stopped")
