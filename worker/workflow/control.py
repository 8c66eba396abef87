"""The tasks on the queue `control`: reports, failing rejected jobs, stops. They are short."""

from typing import Any

import structlog
from celery import shared_task

from shared.messages import Job, StopMessage
from shared.statuses import JobStatus
from worker.blame import INFRASTRUCTURE_ERRORS, retry_after_seconds
from worker.platform import ClientError, clean
from worker.runs import reporter
from worker.runs.bulkhead import backoff
from worker.runs.generations import GenerationClaim
from worker.runs.heartbeat import run_member
from worker.runs.keys import lock_key
from worker.runs.model import ClaimStatus, Lease
from worker.runs.runs import REPORT
from worker.runs.store import UnreadableRunError
from worker.services import services
from worker.workflow import dead_letters
from worker.workflow.dead_letters import FAIL_REJECTED_JOB, rejected_job_member
from worker.workflow.task import Retry, StepTask
from worker.workflow.validation import status_of

log = structlog.get_logger(__name__)

STOP_LOCKED_SECONDS = 1.0
LEASE_LOST_SECONDS = 1.0


@shared_task(base=StepTask, bind=True, name=REPORT.name)
def report(self: StepTask, job: Job, attempt: int = 0, **_: Any) -> None:
    """Report what is new of a run to the backend; retried until the backend has it."""

    def claim(generation: int, redelivered: bool) -> GenerationClaim:
        runs = services().runs
        if runs.store.is_reported(job):
            return GenerationClaim(ClaimStatus.SUPERSEDED, generation)
        return runs.generations.claim(job, REPORT.name, generation, redelivered)

    self.run_poll(
        claim, lambda claimed, lease: _report(job, attempt, claimed, lease), lock=lock_key(job, REPORT.name)
    )


def _report(job: str, attempt: int, generation: int, lease: Lease) -> Retry | None:
    runs = services().runs
    if runs.store.is_reported(job):
        return None
    try:
        wait = _send(job, lease)
    except reporter.LeaseLostError:
        return Retry(LEASE_LOST_SECONDS, {"redelivered": True})
    except ClientError as error:
        if reporter.give_up_rejected_end(job, error, runs):
            return None
        log.warning("report retry scheduled", job=job, error=clean(str(error)), attempt=attempt)
        return _retry_report(job, attempt, generation, retry_after_seconds(error) or 0.0)
    if wait is None:
        return None
    return Retry(wait, {"attempt": 0, "generation": generation, "redelivered": False})


def _send(job: str, lease: Lease) -> float | None:
    runs = services().runs
    try:
        tenant = runs.store.load(job).message.tenant
    except UnreadableRunError as error:
        if not runs.is_lost(job, error):
            raise
        reporter.report_unreadable(job, runs, services().backend())
        return None
    return reporter.report(
        job, runs, services().backend(tenant), lambda: runs.locks.is_held(lease.key, lease.token)
    )


def _retry_report(job: str, attempt: int, generation: int, asked_seconds: float) -> Retry:
    runs = services().runs
    is_asked_for = asked_seconds > 0
    countdown = max(backoff(attempt, runs.timing.max_countdown), asked_seconds)
    changes: dict[str, int | bool] = {"attempt": attempt + 1}
    try:
        if runs.store.has_ended(job):
            # The report is scheduled, so the sweep need not publish another one.
            runs.heartbeats.schedule(run_member(job), countdown)
        generation = runs.generations.advance(job, REPORT.name, generation)
    except INFRASTRUCTURE_ERRORS as error:
        log.warning("report heartbeat not written", job=job, error_type=type(error).__name__)
        return Retry(countdown, changes | {"redelivered": True}, is_asked_for)
    return Retry(countdown, changes | {"generation": generation, "redelivered": False}, is_asked_for)


@shared_task(base=StepTask, bind=True, name=FAIL_REJECTED_JOB.name)
def fail_rejected_job(
    self: StepTask, job: Job, reason: str, tenant: str | None = None, attempt: int = 0, **_: Any
) -> None:
    """Set the job of a rejected message FAILED; retried until the backend has it."""

    def fail() -> Retry | None:
        runs = services().runs
        try:
            dead_letters.fail_rejected_job(job, reason, runs, services().backend(tenant))
        except ClientError as error:
            asked = retry_after_seconds(error) or 0.0
            countdown = max(backoff(attempt, runs.timing.max_countdown), asked)
            runs.heartbeats.schedule(rejected_job_member(job), countdown)
            return Retry(countdown, {"attempt": attempt + 1}, is_asked_for=asked > 0)
        dead_letters.forget_unfailed_job(job, runs)
        return None

    # One at a time, because a late copy must not fail a job that was opened again meanwhile.
    self.run_task(fail, lock=lock_key(job, FAIL_REJECTED_JOB.name))


@shared_task(base=StepTask, bind=True, name=StopMessage.task)
def stop(self: StepTask, /, *args: Any, **kwargs: Any) -> None:
    """End a run; a stop that comes before its job's message is remembered for a day."""
    message = self.parse(StopMessage, args, kwargs)
    if message is None:
        return
    job = message.job

    def stop_run() -> None:
        runs = services().runs
        runs.store.remember_stop(job)
        if runs.store.exists(job):
            reporter.stop(job, runs)
        else:
            # The report's lock keeps a run that is accepted meanwhile from updating the job as well. A worker
            # that died during this very stop may still hold it.
            lock = lock_key(job, REPORT.name)
            self.run_task(lambda: _stop_queued_job(job), lock=lock, locked_seconds=STOP_LOCKED_SECONDS)

    self.run_task(stop_run)


def _stop_queued_job(job: str) -> None:
    """Set a job STOPPED whose message is still in a queue; that message will start nothing.

    Tried once: where it does not work, the job ends when its message is read.
    """
    backend = services().backend()
    try:
        if status_of(backend.get_job(job)) is JobStatus.PENDING:
            backend.update_job(job, status=JobStatus.STOPPED, result={"error": "stopped"})
    except ClientError as error:
        log.info("queued job not stopped", job=job, error_type=type(error).__name__)
