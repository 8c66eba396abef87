"""The first step of every run: is the job still to be done?"""

from dataclasses import dataclass, replace

import structlog

from shared.statuses import JobStatus
from worker.platform import NotFoundError
from worker.runs.heartbeat import run_member
from worker.runs.model import End, Run, RunMessage
from worker.runs.state import RunState
from worker.services import Services
from worker.workflow.dead_letters import DeadLetters
from worker.workflow.validation import status_of

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class WorkflowState(RunState):
    """What the runs of all workflows keep."""

    reopened: bool = False
    """The backend's FAILED was a refusal of an earlier message of this job."""


def begin_run(run: Run[RunMessage, WorkflowState], services: Services) -> bool:
    """The first step's common part: false when the backend says that the job is over, so nothing starts.

    A job that is FAILED only because a message of it was refused is opened again when that one is replayed.
    """
    runs = services.runs
    try:
        status = status_of(services.backend(run.message.tenant).get_job(run.job))
    except NotFoundError:
        runs.events.message(run.job, "The backend does not know this job.", level="warning")
        status = None
    if status is not None and status.is_final and not _may_reopen(run, status, services):
        log.info("job is over already", status=status)
        # Sealed first: whoever dies in between must not report an end that is the backend's own.
        runs.store.mark_reported(run.job)
        runs.store.finish(run.job, End(status, {}))
        runs.heartbeats.remove(run_member(run.job))
        return False
    runs.mark_running(run)
    runs.set_progress(run, "initialize", 100)
    return True


def _may_reopen(run: Run[RunMessage, WorkflowState], status: JobStatus, services: Services) -> bool:
    if status is not JobStatus.FAILED:
        return False
    letters = DeadLetters(services.redis)
    if letters.is_replayed(run.job):
        services.runs.store.update_state(run, replace(run.state, reopened=True))
        letters.forget(run.job)
        return True
    return run.state.reopened
