"""Statuses of the platform, and what a run of `to_task` ends with."""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class JobStatus(StrEnum):
    """`Job.status` of the backend (platform-api: the backend's table)."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def is_final(self) -> bool:
        """A job in a final status never changes again."""
        return self in {JobStatus.STOPPED, JobStatus.SUCCEEDED, JobStatus.FAILED}


class ServeApplicationStatus(StrEnum):
    """`ServeApplication.status` of the backend; Ray Serve uses the same words."""

    NOT_STARTED = "NOT_STARTED"
    DEPLOYING = "DEPLOYING"
    DEPLOY_FAILED = "DEPLOY_FAILED"
    RUNNING = "RUNNING"
    UNHEALTHY = "UNHEALTHY"
    DELETING = "DELETING"
    UNAVAILABLE = "UNAVAILABLE"


class TaskFailure(BaseModel):
    """One task that could not be annotated, and why."""

    model_config = ConfigDict(frozen=True)

    task_id: int
    error: str


class ToTaskResult(BaseModel):
    """What a run of `to_task` ends with; the backend finds these fields in the job's `result`.

    `failures` holds the first 1,000; `failed_count` is exact.
    """

    model_config = ConfigDict(frozen=True)

    status: JobStatus
    message: str
    total_tasks: int = 0
    success_count: int = 0
    failed_count: int = 0
    failures: list[TaskFailure] = Field(default_factory=list)
