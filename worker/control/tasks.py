"""Tasks on the queue `control`: reports to the backend, refusals, stops. Short, and always consumed."""

from typing import Any

import structlog
from celery import shared_task
from pydantic import ValidationError as MessageError

from shared.messages import StopMessage
from shared.statuses import JobStatus
from worker.dead_letters import DeadLetters
from worker.platform import ClientError, NotFoundError, ValidationError, clean
from worker.runs import reports
from worker.runs.keys import lock_key
from worker.runs.live import run_member
from worker.runs.record import End
from worker.runs.runs import REPORT
from worker.runs.step_task import BACKBONE_ERRORS
from worker.services import services
from worker.workflow import REFUSE_JOB, WorkflowTask, mistakes, status_of

log = structlog.get_logger(__name__)


@shared_task(base=WorkflowTask, bind=True, name=REPORT.name)
def report(
    self: WorkflowTask, job: str, attempt: int = 0, generation: int = 0, redelivered: bool = False
) -> None:
    """Send what is new of a run to the backend; comes back until the backend has it."""
    runs = services().runs
    token = runs.leases.new_token()
    key = lock_key(job, REPORT.name)
    try:
        if runs.store.is_sealed(job):
            return
        newest = runs.store.newest_poll(job, REPORT.name)
        if generation < newest and not (redelivered or self.is_redelivered()):
            return  # A copy that was delivered while the backend kept another one waiting.
        generation = max(generation, newest)
        if not runs.leases.take(key, token):
            self.come_back(0.5)
        with runs.leases.keep(key, token):
            tenant = runs.store.load(job).message.tenant
            wait = reports.report(job, runs, services().backend(tenant))
    except BACKBONE_ERRORS:
        self.come_back(1.0, redelivered=True)
    except ClientError as error:
        log.warning("report not taken", job=job, error=clean(str(error)), attempt=attempt)
        countdown = min(0.5 * 2 ** min(attempt, 10), runs.timing.longest_countdown)
        try:
            if runs.store.is_over(job):
                # This report is on its way: the sweep need not send another.
                runs.live.expect(run_member(job), countdown)
            generation = runs.store.announce_poll(job, REPORT.name, generation)
        except BACKBONE_ERRORS as away:
            log.warning("sign of life not given", job=job, error_type=type(away).__name__)
            self.come_back(countdown, attempt=attempt + 1, redelivered=True)
        self.come_back(countdown, attempt=attempt + 1, generation=generation, redelivered=False)
    else:
        if wait is not None:
            self.come_back(wait, attempt=0, redelivered=False)


@shared_task(base=WorkflowTask, bind=True, name=REFUSE_JOB.name)
def refuse_job(
    self: WorkflowTask, job: str, reason: str, tenant: str | None = None, attempt: int = 0
) -> None:
    """Set the job of a refused message FAILED, unless it is over or has got a run by now."""
    letters, runs = DeadLetters(services().redis), services().runs
    result = {"error": reason}
    try:
        if runs.store.exists(job):
            return
        backend = services().backend(tenant)
        status = status_of(backend.get_job(job))
        if status is not None and status.is_final:
            if status is not JobStatus.FAILED:
                letters.forget(job)  # somebody else ended it before we could
            return
        # Noted first: who dies in between must not leave a job that a replay cannot open again.
        letters.refused(job)
        backend.update_job(job, status=JobStatus.FAILED, result=result)
        if runs.store.exists(job):
            # A good message came while the backend was asked: the job has its end, so the run ends too.
            runs.finish(job, End(JobStatus.FAILED, result))
    except (NotFoundError, ValidationError) as error:
        letters.forget(job)
        log.warning("refusal not taken", job=job, error_type=type(error).__name__)
    except BACKBONE_ERRORS:
        self.come_back(1.0)
    except ClientError:
        self.come_back(
            min(0.5 * 2 ** min(attempt, 10), services().runs.timing.longest_countdown), attempt=attempt + 1
        )


@shared_task(base=WorkflowTask, bind=True, name=StopMessage.task)
def stop(self: WorkflowTask, /, *args: Any, **kwargs: Any) -> None:
    """End a run; a stop that comes before its job's message is remembered for a day."""
    if args:
        self.refuse(args, kwargs, "arguments must be sent by name")
        return
    try:
        message = StopMessage.model_validate(kwargs)
    except MessageError as error:
        self.refuse(args, kwargs, mistakes(error))
        return
    runs = services().runs
    try:
        runs.store.remember_stop(message.job)
        if runs.store.exists(message.job):
            reports.stop(message.job, runs)
            return
    except BACKBONE_ERRORS:
        self.come_back(1.0)
    _stop_unread(message.job)


def _stop_unread(job: str) -> None:
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
