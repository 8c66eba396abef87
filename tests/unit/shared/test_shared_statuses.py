import pytest

from shared import JobStatus, ServeApplicationStatus, ToTaskResult


@pytest.mark.parametrize("status", ["STOPPED", "SUCCEEDED", "FAILED"])
def test_ends_are_final(status: str) -> None:
    assert JobStatus(status).is_final


@pytest.mark.parametrize("status", ["PENDING", "RUNNING"])
def test_others_are_not_final(status: str) -> None:
    assert not JobStatus(status).is_final


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
