"""The jobs of messages that could not be accepted: each is ended at the backend, once."""

import hashlib
import json
from typing import Any

import structlog

from shared.channels import RETENTION_SECONDS, dead_letters_key
from shared.messages import DeployMessage, ToTaskMessage
from shared.statuses import JobStatus
from worker import metrics
from worker.broker import UNKNOWN_STEP, RejectedMessage
from worker.lua import redis_time
from worker.platform import NotFoundError, ValidationError
from worker.runs.model import End, Step
from worker.runs.reports.reporter import JobsApi
from worker.runs.runs import MAX_UNREADABLE_SECONDS, Runs
from worker.services import Services, services
from worker.workflow.dead_letters import DeadLetters
from worker.workflow.validation import readable_job, readable_tenant, status_of

log = structlog.get_logger(__name__)

END_REJECTED_JOB = Step("runs.refuse_job", position=0, queue="control")
"""Ends the job of a rejected message. Older workers know the task by this name."""

RUN_TASKS = (DeployMessage.task, ToTaskMessage.task)

REJECTED_JOB_PREFIX = "rejected:"
"""Begins the heartbeat member of a rejected job that has not ended at the backend yet."""


def unended_jobs_key() -> str:
    """Hash: by job, the arguments of the message that ends it, until the backend has its end."""
    return f"{{{dead_letters_key()}}}:unfailed"


def rejected_job_member(job: str) -> str:
    """The heartbeat member of a rejected job."""
    return f"{REJECTED_JOB_PREFIX}{job}"


def reject_message(services: Services, rejected: RejectedMessage) -> None:
    """Keep a message whole with the reason, and schedule the end of its job if that has no run."""
    job = readable_job(rejected.kwargs, rejected.args) if rejected.task in RUN_TASKS else None
    runs = services.runs
    if job is not None and runs.store.exists(job):
        job = None
    DeadLetters(services.redis).add(
        rejected.task, rejected.body, rejected.reason, message_id=rejected.message_id, job=job
    )
    metrics.count_rejected(rejected.task)
    if job is not None:
        about = {
            "job": job,
            "reason": rejected.reason,
            "tenant": readable_tenant(rejected.kwargs, rejected.args),
        }
        if rejected.job_status is not JobStatus.FAILED:
            # Older workers do not know this argument, and set the job FAILED with the reason.
            about["status"] = rejected.job_status.value
        services.redis.hset(unended_jobs_key(), job, json.dumps(about))
        runs.heartbeats.schedule(rejected_job_member(job))
        runs.publisher.publish(END_REJECTED_JOB, "control", about)


def recover_rejected_job(job: str, runs: Runs) -> None:
    """Publish the message that ends an overdue rejected job again; it was lost."""
    about = runs.redis.hget(unended_jobs_key(), job)
    if about is None:
        runs.heartbeats.remove(rejected_job_member(job))
    else:
        runs.publisher.publish(END_REJECTED_JOB, "control", json.loads(about))


def forget_unended_job(job: str, runs: Runs) -> None:
    """The backend has the end of a rejected job, or nobody needs to say it any more."""
    runs.redis.hdel(unended_jobs_key(), job)
    runs.heartbeats.remove(rejected_job_member(job))


def reject_undelivered(rejected: RejectedMessage, **_: Any) -> None:
    """Reject a message that reached no task, for the broker's consumer or transport could not read it.

    The app connects it to the broker's signal (`worker.app`).
    """
    reject_message(services(), rejected)
    job, runs = readable_job(rejected.kwargs), services().runs
    if rejected.reason != UNKNOWN_STEP or job is None or runs.store.has_ended(job):
        return
    # Anybody can name a run in a message. One that stands at a step that nobody knows has not changed either.
    if runs.store.seconds_since_change(job) >= MAX_UNREADABLE_SECONDS:
        runs.finish(job, End(JobStatus.FAILED, {"error": f"{rejected.task}: {rejected.reason}"}))


def seconds_unknown(message_id: str, **_: Any) -> float:
    """For how long workers have met a step that they do not know; connected like `reject_undelivered`."""
    redis = services().redis
    digest = hashlib.sha256(message_id.encode("utf-8", "backslashreplace")).hexdigest()
    key, now = f"{{{dead_letters_key()}}}:unknown:{digest}", redis_time(redis)
    redis.set(key, now, nx=True, ex=2 * RETENTION_SECONDS)
    return now - float(redis.get(key) or now)


def end_rejected_job(job: str, end: End, runs: Runs, backend: JobsApi, tenant: str | None = None) -> None:
    """Give the job its end at the backend, unless it has ended or has a run by now. Safe to repeat.

    Raises `ClientError` when the backend did not take it and it is to be repeated.
    """
    letters = DeadLetters(runs.redis)
    if runs.store.exists(job):
        return
    try:
        status = status_of(backend.get_job(job))
        if status is None or not status.is_final:
            _end(job, end, runs, backend, letters)
        elif not letters.is_rejecting(job):
            return
        elif status is not end.status:
            letters.forget(job)  # Somebody else has ended the job first.
            return
        runs.send_rejected_end(job, end, tenant)
        if end.status is JobStatus.FAILED:
            # A replay may open it from here on. Any earlier, this would take the new run for an older one.
            letters.mark_rejected(job)
        else:
            letters.forget(job)  # It was not to be done any more, which a replay does not change.
    except (NotFoundError, ValidationError) as error:
        letters.forget(job)
        log.warning("rejected job not ended", job=job, error_type=type(error).__name__)


def _end(job: str, end: End, runs: Runs, backend: JobsApi, letters: DeadLetters) -> None:
    # Noted first: a worker that dies in between must not leave a job that a replay cannot open again.
    letters.start_rejecting(job)
    backend.update_job(job, status=end.status, result=end.result)
    if runs.store.exists(job):
        # A valid message arrived meanwhile: its job has ended at the backend, so its run ends too.
        runs.finish(job, end)
