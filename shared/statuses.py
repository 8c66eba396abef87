"""Statuses of the platform, and the result of a run of `to_task`."""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class JobStatus(StrEnum):
    """`Job.status` of the backend (platform-api: "Backend")."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended: a final status never changes again."""
        return self in {JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.FAILED}


class ServeApplicationStatus(StrEnum):
    """`ServeApplication.status` of the backend; Ray Serve uses the same words (platform-api: "Backend")."""

    NOT_STARTED = "NOT_STARTED"
    DEPLOYING = "DEPLOYING"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    RUNNING = "RUNNING"
    UNHEALTHY = "UNHEALTHY"
    DELETING = "DELETING"
    UNAVAILABLE = "UNAVAILABLE"

    @property
    def is_failed(self) -> bool:
        """Whether waiting for RUNNING is of no use any more (seeds: the pre-processor's fail-fast table)."""
        return self in {
            ServeApplicationStatus.DEPLOY_FAILED,
            ServeApplicationStatus.UNHEALTHY,
            ServeApplicationStatus.UNAVAILABLE,
        }


def is_final_status(status: object) -> bool:
    """Tell whether a job's status that someone else wrote is a final one.

    Args:
        status: What an answer of the backend or a Redis field holds, of any type.

    Returns:
        `JobStatus.is_final`; False also for a value that is no known status.
    """
    return isinstance(status, str) and status in set(JobStatus) and JobStatus(status).is_final


def is_failed_status(status: object) -> bool:
    """Tell whether an application's status that someone else wrote is a failed one.

    Args:
        status: What the backend or Ray Serve answered, of any type.

    Returns:
        `ServeApplicationStatus.is_failed`; False also for a value that is no known status.
    """
    if not isinstance(status, str) or status not in set(ServeApplicationStatus):
        return False
    return ServeApplicationStatus(status).is_failed


class TaskFailure(BaseModel):
    """A task that could not be annotated, and the reason.

    Attributes:
        task_id: The task's id in the backend.
        error: What went wrong, in English and without secrets.
    """

    model_config = ConfigDict(frozen=True)

    task_id: int
    error: str

    def __getitem__(self, name: str) -> Any:
        """Look a field up as in the job's result, where a failure is an object: `failures[0]["task_id"]`."""
        return self.model_dump()[name]


class ToTaskResult(BaseModel):
    """The result of a run of `to_task`, whose fields the backend stores as the job's `result`.

    Rules: contract, "What a run does to the job".

    Attributes:
        status: The final status of the job.
        message: A sentence that sums the run up.
        total_tasks: How many tasks the filters selected.
        success_count: How many were annotated.
        failed_count: How many were not; exact, however many failures are listed.
        failures: The first 1,000 failures.
    """

    model_config = ConfigDict(frozen=True)

    status: JobStatus
    message: str
    total_tasks: int = 0
    success_count: int = 0
    failed_count: int = 0
    failures: list[TaskFailure] = Field(default_factory=list)
