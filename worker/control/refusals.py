"""The job of a message that was refused: FAILED at the backend, unless it is over or has got a run by now."""

import structlog

from shared.statuses import JobStatus
from worker.dead_letters import DeadLetters
from worker.platform import NotFoundError, ValidationError
from worker.runs.model import End
from worker.runs.reporter import JobsApi
from worker.runs.runs import Runs
from worker.workflow import status_of

log = structlog.get_logger(__name__)


def tell(job: str, reason: str, runs: Runs, backend: JobsApi) -> None:
    """Tell the backend; safe to repeat. Raises `ClientError` when it has to be told again later."""
    letters = DeadLetters(runs.redis)
    if runs.store.exists(job):
        return
    try:
        status = status_of(backend.get_job(job))
        if status is None or not status.is_final:
            _fail(job, reason, runs, backend, letters)
        elif not letters.is_refusing(job):
            return
        elif status is not JobStatus.FAILED:
            letters.forget(job)  # Somebody else ended it before we could.
            return
        # From here on a replay may open the job. No sooner: this would take the new run for one that came
        # before the end.
        letters.refused(job)
    except (NotFoundError, ValidationError) as error:
        letters.forget(job)
        log.warning("refusal not taken", job=job, error_type=type(error).__name__)


def _fail(job: str, reason: str, runs: Runs, backend: JobsApi, letters: DeadLetters) -> None:
    result = {"error": reason}
    # Noted first: who dies in between must not leave a job that a replay cannot open again.
    letters.refusing(job)
    backend.update_job(job, status=JobStatus.FAILED, result=result)
    if runs.store.exists(job):
        # A good message came while the backend was asked: the job has its end, so the run ends too.
        runs.finish(job, End(JobStatus.FAILED, result))
