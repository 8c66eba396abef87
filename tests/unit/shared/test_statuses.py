"""Which statuses are ends and failures; what a run of `to_task` ends with."""

import pytest

from shared import JobStatus, ServeApplicationStatus, ToTaskResult
from shared.statuses import TaskFailure, is_failed_status, is_final_status


@pytest.mark.parametrize("status", ["STOPPED", "SUCCEEDED", "FAILED"])
def test_ends_are_final(status: str) -> None:
    assert JobStatus(status).is_final


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_others_are_not_final(status: str) -> None:
    assert not JobStatus(status).is_final


@pytest.mark.parametrize("status", ["DEPLOY_FAILED", "UNHEALTHY", "UNAVAILABLE"])
def test_failures_of_an_application_are_failed(status: str) -> None:
    assert ServeApplicationStatus(status).is_failed


@pytest.mark.parametrize("status", ["NOT_STARTED", "DEPLOYING", "RUNNING", "DELETING"])
def test_other_statuses_of_an_application_are_not_failed(status: str) -> None:
    assert not ServeApplicationStatus(status).is_failed


@pytest.mark.parametrize("status", ["FINISHED", "", None, 1, ["FAILED"]])
def test_unknown_status_is_neither_final_nor_failed(status: object) -> None:
    assert not is_final_status(status)
    assert not is_failed_status(status)


def test_status_as_text_is_final_or_failed() -> None:
    assert is_final_status("STOPPED")
    assert is_failed_status("UNHEALTHY")


def test_statuses_are_the_platforms() -> None:
    assert set(JobStatus) == {"PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"}
    assert set(ServeApplicationStatus) == {
        "NOT_STARTED", "DEPLOYING", "DEPLOY_FAILED", "RUNNING", "UNHEALTHY", "DELETING", "UNAVAILABLE",
    }  # fmt: skip


def test_result_has_the_contracts_fields() -> None:
    assert ToTaskResult(status=JobStatus.SUCCEEDED, message="done").model_dump(mode="json") == {
        "status": "SUCCEEDED",
        "message": "done",
        "total_tasks": 0,
        "success_count": 0,
        "failed_count": 0,
        "failures": [],
    }


def test_a_failure_is_also_read_as_in_the_jobs_result() -> None:
    failure = TaskFailure(task_id=7, error="no file")

    assert (failure["task_id"], failure["error"]) == (7, "no file")
    with pytest.raises(KeyError):
        failure["model_dump"]
