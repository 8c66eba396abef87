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
from worker.runs.runs import REPORT
from worker.services import services
from worker.workflow import dead_letters
from worker.workflow.dead_letters import REFUSE_JOB
from worker.workflow.task import BACKBONE_ERRORS, WorkflowTask
from worker.workflow.validation import mistakes, status_of

log = structlog.get_logger(__name__)


@shared_task(base=WorkflowTask, bind=True, name=REPORT.name)
def report(
    self: WorkflowTask, job: Job, attempt: int = 0, generation: int = 0, redelivered: bool = False
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
        # A redelivered one goes on as the newest, or it would be taken for an old copy when it is back.
        if not runs.leases.take(key, token):
            self.come_back(0.5, generation=generation)
        with runs.leases.keep(key, token):
            tenant = runs.store.load(job).message.tenant
            backend = services().backend(tenant)
            wait = reporter.report(job, runs, backend, lambda: runs.leases.holds(key, token))
    except BACKBONE_ERRORS:
        self.come_back(1.0, redelivered=True)
    except reporter.ReplacedError:
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
            self.come_back(wait, attempt=0, generation=generation, redelivered=False)


@shared_task(base=WorkflowTask, bind=True, name=REFUSE_JOB.name)
def refuse_job(
    self: WorkflowTask, job: Job, reason: str, tenant: str | None = None, attempt: int = 0
) -> None:
    """Set the job of a refused message FAILED; comes back until the backend has it."""
    runs = services().runs
    token, key = runs.leases.new_token(), lock_key(job, REFUSE_JOB.name)
    try:
        # One at a time: a copy that is late must not fail a job that was opened again meanwhile.
        if not runs.leases.take(key, token):
            self.come_back(0.5)
        with runs.leases.keep(key, token):
            dead_letters.tell(job, reason, runs, services().backend(tenant))
    except BACKBONE_ERRORS:
        self.come_back(1.0)
    except ClientError:
        countdown = min(0.5 * 2 ** min(attempt, 10), runs.timing.longest_countdown)
        self.come_back(countdown, attempt=attempt + 1)


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
            reporter.stop(message.job, runs)
            return
        # With the report's lock, so that a run that comes meanwhile does not tell the backend as well.
        token, key = runs.leases.new_token(), lock_key(message.job, REPORT.name)
        # Who holds it may be a worker that died over this very stop.
        if not runs.leases.take(key, token):
            self.come_back(1.0)
        with runs.leases.keep(key, token):
            _stop_unread(message.job)
    except BACKBONE_ERRORS:
        self.come_back(1.0)


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
