"""A retry: the message of an ended run once more, as another job, for exactly the tasks that failed."""

from enum import StrEnum
from typing import Final

from pydantic import ValidationError
from redis import Redis

from shared.channels import job_key
from shared.messages import ToTaskMessage
from shared.statuses import is_final_status
from shared.validation import describe_validation_error
from worker.workflow.dead_letters import DeadLetters
from worker.workflow.ended_runs import EndedRun, EndedRuns

OWN_OPTIONS: Final = ("only_failed_of", "skip_annotated", "dry_run")
"""Options of a message that a retry does not take over."""

_DEFAULTS: Final = {"plugin": None, "skip_annotated": False, "dry_run": False}


class RetryProblem(StrEnum):
    """Why nothing is retried."""

    LIVE = "live"
    NOT_KEPT = "not_kept"
    NO_TASKS = "no_tasks"
    NONE_FAILED = "none_failed"
    JOB_TAKEN = "job_taken"
    INVALID = "invalid"


class RetryError(RuntimeError):
    """A run is not retried: the message says why, and `hint` what to do about it."""

    def __init__(self, problem: RetryProblem, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.problem = problem
        self.hint = hint


def is_retryable(ended: EndedRun | None) -> bool:
    """Whether there is something that a retry would annotate."""
    return ended is not None and _problem_of(ended) is None


def retry_message(
    redis: "Redis",
    job: str,
    new_job: object,
    *,
    plugin: object = None,
    skip_annotated: object = False,
    dry_run: object = False,
) -> ToTaskMessage:
    """The message that annotates the failed tasks of the ended run of `job`, as `new_job`.

    `plugin`: another release than that of the run. What is given is checked as any message is. Raises
    `RetryError` where nothing is to be retried.
    """
    ended = EndedRuns(redis).get(job)
    if ended is None:
        status = redis.hget(job_key(job), "status")
        if status is not None and not is_final_status(status):
            raise RetryError(RetryProblem.LIVE, f"the run of job {job} has not ended: it is {status}")
        raise RetryError(
            RetryProblem.NOT_KEPT,
            f"no ended run of job {job} is known",
            "`synapse-worker runs list` shows those that are kept.",
        )
    if (problem := _problem_of(ended)) is not None:
        raise problem
    fields = {name: value for name, value in ended.arguments.items() if name not in OWN_OPTIONS}
    fields |= {"job": new_job, "only_failed_of": job}
    own = {"plugin": plugin, "skip_annotated": skip_annotated, "dry_run": dry_run}
    fields |= {name: value for name, value in own.items() if value is not _DEFAULTS[name]}
    try:
        return ToTaskMessage.model_validate(fields)
    except ValidationError as error:
        raise RetryError(RetryProblem.INVALID, describe_validation_error(error)) from None


def check_job_is_free(redis: "Redis", job: str) -> None:
    """Raise `RetryError` where a message for `job` would start nothing, as far as Redis knows."""
    status = redis.hget(job_key(job), "status")
    if status is None and (ended := EndedRuns(redis).get(job)) is not None:
        status = ended.status
    letters = DeadLetters(redis)
    if status is None and letters.is_rejected(job) and not letters.is_replayed(job):
        status = "FAILED, for its message was rejected"
    if status is not None:
        raise RetryError(
            RetryProblem.JOB_TAKEN,
            f"job {job} has a run already: {status}; nothing is started",
            "A job runs once: retry with a new job.",
        )


def _problem_of(ended: EndedRun) -> RetryError | None:
    job = ended.job
    if ended.task != ToTaskMessage.task:
        message = f"the run of job {job} is one of {ended.task}, which has no tasks"
        return RetryError(RetryProblem.NO_TASKS, message, "Publish it anew.")
    if ended.failed:
        return None
    total, success = int(ended.record.get("total", 0)), int(ended.record.get("success", 0))
    is_complete = success >= total > 0
    hint = "The tasks that it did not come to are annotated by `to-task` with `--skip-annotated`."
    message = f"no task of job {job} has failed; nothing is started"
    return RetryError(RetryProblem.NONE_FAILED, message, "" if is_complete else hint)
