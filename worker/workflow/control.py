"""Tasks on the queue `control`: reports to the backend, refusals, stops. Short, and always consumed."""

from typing import Any

import structlog
from celery import shared_task
from pydantic import ValidationError as MessageError

from shared.messages import Job, StopMessage
from shared.statuses import JobStatus
from worker.platform import ClientError, clean
from worker.runs import reporter
from worker.runs.heartbeat import run_member
from worker.runs.keys import lock_key
from worker.runs.model import ClaimStatus
from worker.runs.runs import REPORT
from worker.services import services
from worker.workflow import dead_letters
from worker.workflow.dead_letters import FAIL_REJECTED_JOB
from worker.workflow.task import INFRASTRUCTURE_ERRORS, WorkflowTask
from worker.workflow.validation import mistakes, status_of

log = structlog.get_logger(__name__)


@shared_task(base=WorkflowTask, bind=True, name=REPORT.name)
def report(
    self: WorkflowTask, job: Job, attempt: int = 0, generation: int = 0, redelivered: bool = False
) -> None:
    """Send what is new of a run to the backend; comes back until the backend has it."""
    runs = services().runs
    token = runs.locks.new_token()
    key = lock_key(job, REPORT.name)
    try:
        if runs.store.is_reported(job):
            return
        claim = runs.generations.claim(job, REPORT.name, generation, redelivered or self.is_redelivered())
        if claim.status is ClaimStatus.SUPERSEDED:
            return  # A copy that was delivered while the backend kept another one waiting.
        generation = claim.generation
        if not runs.locks.acquire(key, token):
            self.retry_later(0.5, generation=generation)
        with runs.locks.hold(key, token):
            tenant = runs.store.load(job).message.tenant
            backend = services().backend(tenant)
            wait = reporter.report_run(job, runs, backend, lambda: runs.locks.is_held(key, token))
    except INFRASTRUCTURE_ERRORS:
        self.retry_later(1.0, redelivered=True)
    except reporter.LeaseLostError:
        self.retry_later(1.0, redelivered=True)
    except ClientError as error:
        log.warning("report not taken", job=job, error=clean(str(error)), attempt=attempt)
        countdown = min(0.5 * 2 ** min(attempt, 10), runs.timing.max_countdown)
        try:
            if runs.store.has_ended(job):
                # This report is on its way: the sweep need not send another.
                runs.heartbeats.schedule(run_member(job), countdown)
            generation = runs.generations.advance(job, REPORT.name, generation)
        except INFRASTRUCTURE_ERRORS as away:
            log.warning("sign of life not given", job=job, error_type=type(away).__name__)
            self.retry_later(countdown, attempt=attempt + 1, redelivered=True)
        self.retry_later(countdown, attempt=attempt + 1, generation=generation, redelivered=False)
    else:
        if wait is not None:
            self.retry_later(wait, attempt=0, generation=generation, redelivered=False)


@shared_task(base=WorkflowTask, bind=True, name=FAIL_REJECTED_JOB.name)
def fail_rejected_job(
    self: WorkflowTask, job: Job, reason: str, tenant: str | None = None, attempt: int = 0
) -> None:
    """Set the job of a refused message FAILED; comes back until the backend has it."""
    runs = services().runs
    token, key = runs.locks.new_token(), lock_key(job, FAIL_REJECTED_JOB.name)
    try:
        # One at a time: a copy that is late must not fail a job that was opened again meanwhile.
        if not runs.locks.acquire(key, token):
            self.retry_later(0.5)
        with runs.locks.hold(key, token):
            dead_letters.fail_rejected_job(job, reason, runs, services().backend(tenant))
    except INFRASTRUCTURE_ERRORS:
        self.retry_later(1.0)
    except ClientError:
        countdown = min(0.5 * 2 ** min(attempt, 10), runs.timing.max_countdown)
        self.retry_later(countdown, attempt=attempt + 1)


@shared_task(base=WorkflowTask, bind=True, name=StopMessage.task)
def stop(self: WorkflowTask, /, *args: Any, **kwargs: Any) -> None:
    """End a run; a stop that comes before its job's message is remembered for a day."""
    if args:
        self.reject(args, kwargs, "arguments must be sent by name")
        return
    try:
        message = StopMessage.model_validate(kwargs)
    except MessageError as error:
        self.reject(args, kwargs, mistakes(error))
        return
    runs = services().runs
    try:
        runs.store.remember_stop(message.job)
        if runs.store.exists(message.job):
            reporter.stop_run(message.job, runs)
            return
        # With the report's lock, so that a run that comes meanwhile does not tell the backend as well.
        token, key = runs.locks.new_token(), lock_key(message.job, REPORT.name)
        # Who holds it may be a worker that died over this very stop.
        if not runs.locks.acquire(key, token):
            self.retry_later(1.0)
        with runs.locks.hold(key, token):
            _stop_queued_job(message.job)
    except INFRASTRUCTURE_ERRORS:
        self.retry_later(1.0)


def _stop_queued_job(job: str) -> None:
    """A job whose message lies in a queue ends now; that message will start nothing.

    Tried once: where it does not work, the job ends when its message is read.
    """
    backend = services().backend()
    try:
        found = backend.get_job(job)
        if status_of(found) is JobStatus.PENDING:
            result = {"error": "stopped"}
            backend.update_job(job, status=JobStatus.STOPPED, result=result)
    except ClientError as error:
        log.info("job not stopped before its message", job=job, error_type=type(error).__name__)
