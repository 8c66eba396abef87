"""The result of a stopped run."""

from typing import Any

import pytest
from fakeredis import FakeRedis

from shared.channels import job_key
from shared.messages import ToTaskMessage
from shared.statuses import JobStatus
from tests.unit.runs.example_workflow import finals
from worker.runs.model import End, Run
from worker.runs.reporter import report, stop
from worker.runs.runs import Runs
from worker.testing import FakeBackend


def test_stop_of_a_deploy_has_the_contracts_result(runs: Runs, run: Run) -> None:
    stop("42", runs)

    assert runs.store.load("42").end == End(JobStatus.STOPPED, {"error": "stopped"})


def test_stop_before_its_to_task_has_the_contracts_result(
    runs: Runs, to_task: ToTaskMessage, backend: FakeBackend
) -> None:
    runs.store.remember_stop("42")
    runs.store.accept(to_task, "to_task")

    report("42", runs, backend)

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


def test_task_recorded_while_the_stop_is_written_counts(
    runs: Runs,
    to_task: ToTaskMessage,
    backend: FakeBackend,
    redis: FakeRedis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a task that is recorded in the moment before the end is
    runs.store.accept(to_task, "to_task")
    redis.hset(job_key("42"), mapping={"total": 10, "success": 3})
    finish = runs.store.finish

    def late(*args: Any, **options: Any) -> bool:
        redis.hincrby(job_key("42"), "success", 1)
        return finish(*args, **options)

    monkeypatch.setattr(runs.store, "finish", late)

    # When the run is stopped
    stop("42", runs)
    report("42", runs, backend)

    # Then it counts
    (final,) = finals(backend)
    assert final["result"]["success_count"] == 4


def test_stop_of_a_to_task_has_the_counts_so_far(
    runs: Runs, to_task: ToTaskMessage, backend: FakeBackend, redis: FakeRedis
) -> None:
    runs.store.accept(to_task, "to_task")
    redis.hset(job_key("42"), mapping={"total": 10, "success": 3, "failed": 1})

    stop("42", runs)
    report("42", runs, backend)

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


def test_stop_of_a_renamed_to_task_action_has_the_counts(
    runs: Runs, to_task: ToTaskMessage, backend: FakeBackend
) -> None:
    runs.store.accept(to_task.model_copy(update={"action": "pre_annotate"}), "to_task")

    stop("42", runs)
    report("42", runs, backend)

    (final,) = finals(backend)
    assert (final["result"]["total_tasks"], final["result"]["error"]) == (0, "stopped")
