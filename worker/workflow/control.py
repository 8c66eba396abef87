"""The tasks on the queue `control`: stops, ending rejected jobs, what older workers ask for."""

from typing import Any, Literal

import structlog
from celery import shared_task

from shared.messages import Job, StopMessage
from shared.statuses import JobStatus
from worker.blame import retry_after_seconds
from worker.platform import ClientError
from worker.runs.bulkhead import backoff
from worker.runs.keys import lock_key
from worker.runs.model import End
from worker.runs.reports import reporter
from worker.runs.reports.outbox import REPORT
from worker.services import services
from worker.workflow import rejected_jobs
from worker.workflow.delivery import Retry
from worker.workflow.rejected_jobs import END_REJECTED_JOB, rejected_job_member
from worker.workflow.task import StepTask
from worker.workflow.validation import status_of

log = structlog.get_logger(__name__)

STOP_LOCKED_SECONDS = 1.0


@shared_task(base=StepTask, bind=True, name=REPORT)
def report(self: StepTask, job: Job, **_: Any) -> None:
    """Report what is new of a run: the message with which workers of an older release ask for it."""

    def enter() -> None:
        services().runs.outbox.enter({job: 0.0})

    self.run_task(enter)


@shared_task(base=StepTask, bind=True, name=END_REJECTED_JOB.name)
def end_rejected_job(
    self: StepTask,
    job: Job,
    reason: str,
    tenant: str | None = None,
    status: Literal["FAILED", "STOPPED"] = "FAILED",
    attempt: int = 0,
    **_: Any,
) -> None:
    """End the job of a rejected message; retried until the backend has its end."""
    job_end = End(JobStatus(status), {"error": reason})

    def end() -> Retry | None:
        runs = services().runs
        try:
            rejected_jobs.end_rejected_job(job, job_end, runs, services().backend(tenant), tenant)
        except ClientError as error:
            asked = retry_after_seconds(error) or 0.0
            countdown = max(backoff(attempt, runs.timing.max_countdown), asked)
            runs.heartbeats.schedule(rejected_job_member(job), countdown)
            return Retry(countdown, {"attempt": attempt + 1}, is_asked_for=asked > 0)
        rejected_jobs.forget_unended_job(job, runs)
        return None

    # One at a time, because a late copy must not end a job that was opened again meanwhile.
    self.run_task(end, lock=lock_key(job, END_REJECTED_JOB.name), calls_service=True)


@shared_task(base=StepTask, bind=True, name=StopMessage.task)
def stop(self: StepTask, /, *args: Any, **kwargs: Any) -> None:
    """End a run; a stop that comes before its job's message is remembered for a day."""
    job = self.parse(StopMessage, args, kwargs).job

    def stop_run() -> None:
        runs = services().runs
        runs.store.remember_stop(job)
        if runs.store.exists(job):
            reporter.stop(job, runs)
        else:
            # The report's lock keeps a run that is accepted meanwhile from updating the job as well. A worker
            # that died during this very stop may still hold it.
            lock = lock_key(job, REPORT)
            self.run_task(
                lambda: _stop_queued_job(job),
                lock=lock,
                locked_seconds=STOP_LOCKED_SECONDS,
                calls_service=True,
            )

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
