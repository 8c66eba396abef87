"""The outbox: what the backend hears of a run, by one sender, in order, sealed by the final status."""

from collections.abc import Callable
from typing import Any, Protocol

import structlog

from shared.channels import job_key
from shared.statuses import JobStatus, is_final_status
from worker.lua import redis_time
from worker.platform import (
    AuthenticationError,
    ClientConnectionError,
    ClientError,
    HTTPError,
    NotFoundError,
    RateLimitError,
    ValidationError,
    shorten,
)
from worker.runs.heartbeat import run_member
from worker.runs.model import STOPPED, AnyRun, End, backend_job_id, stopped_job_result
from worker.runs.progress import proportions_of
from worker.runs.runs import Runs
from worker.runs.store import Reported

log = structlog.get_logger(__name__)

SECONDS_BETWEEN_PATCHES = 1.0
REJECTED_STATUS_CODES = (400, 413, 422)
"""Statuses with which a backend refuses what a report holds, or how much it holds."""
MAX_TEXT_CHARS = 300
"""Characters of each text in the result that is sent when the whole one was refused."""

Update = Callable[..., dict[str, Any]]
"""Changes the job of the run that is reported."""


class JobsApi(Protocol):
    """The calls of the backend that reporting needs."""

    def get_job(self, job: str) -> dict[str, Any]: ...
    def update_job(self, job: str, **fields: Any) -> dict[str, Any]: ...
    def create_logs(self, entries: list[dict[str, Any]]) -> object: ...


class LeaseLostError(Exception):
    """Another one reports the run by now: this process was suspended, and what it has read is old."""


def report_run(
    job: str, runs: Runs, backend: JobsApi, is_reporter: Callable[[], bool] = lambda: True
) -> float | None:
    """Send what is new of the run; returns after how many seconds there is more to send, or None.

    Raises `ClientError` when the backend did not take it, and `ReplacedError` when `is_sender` says no as the
    job is about to be changed; whoever calls comes back later.
    """

    def update(**fields: Any) -> dict[str, Any]:
        if not is_reporter():
            raise LeaseLostError
        return backend.update_job(job, **fields)

    if runs.store.is_reported(job):
        return None
    run = runs.store.load(job)
    _send_messages(run, runs, backend)
    if run.end is not None:
        _send_end(run, run.end, runs, backend, update)
        return None
    reported = runs.store.reported(job)
    wait = _seconds_until_next_patch(reported, runs)
    if wait > 0:
        return wait
    return _send_progress(run, reported, runs, backend, update)


def _send_progress(
    run: AnyRun, reported: Reported, runs: Runs, backend: JobsApi, update: Update
) -> float | None:
    if reported.version == reported.version_sent:
        return None  # A second copy of this report: the first said it all.
    snapshot = runs.progress.snapshot(run.job, proportions_of(run.message))
    fields: dict[str, Any] = {"progress_record": snapshot.progress, "metrics_record": snapshot.metrics}
    if not reported.is_running_sent:
        fields["status"] = JobStatus.RUNNING
    runs.store.mark_patched(run.job)
    try:
        status = update(**fields).get("status")
    except ValidationError:
        # A job that is over takes no progress.
        status = backend.get_job(run.job).get("status")
        if not is_final_status(status):
            raise
    # Again: it may have got there late, after a retry.
    runs.store.mark_patched(run.job, is_running_sent=True)
    if status == JobStatus.STOPPED:
        stop_run(run.job, runs)
    return SECONDS_BETWEEN_PATCHES if runs.store.acknowledge_report(run.job, reported.version) else None


def _send_end(run: AnyRun, end: End, runs: Runs, backend: JobsApi, update: Update) -> None:
    if run.position > 0 or not _is_over(run, backend):
        _patch_end(run, end, runs, backend, update)
    runs.store.mark_reported(run.job)
    runs.heartbeats.remove(run_member(run.job))
    log.info("end reported", status=end.status)


def _is_over(run: AnyRun, backend: JobsApi) -> bool:
    """Whether the backend has an end of a job that never began: the stop that came first told it."""
    try:
        return is_final_status(backend.get_job(run.job).get("status"))
    except NotFoundError:
        return False


def _patch_end(run: AnyRun, end: End, runs: Runs, backend: JobsApi, update: Update) -> None:
    complete = end.status is JobStatus.SUCCEEDED
    snapshot = runs.progress.snapshot(run.job, proportions_of(run.message), is_complete=complete)
    result = end.result
    if end.status is JobStatus.STOPPED:
        result = stopped_job_result(run.message, runs.redis.hgetall(job_key(run.job)))
    try:
        update(
            status=end.status,
            result=result,
            progress_record=snapshot.progress,
            metrics_record=snapshot.metrics,
        )
    except NotFoundError:
        log.error("the backend does not know the job", status=end.status)
    except HTTPError as error:
        if error.status_code not in REJECTED_STATUS_CODES:
            raise
        # If it is final, somebody else ended the job first, or the answer to our first report was lost.
        if not is_final_status(backend.get_job(run.job).get("status")):
            log.warning("the backend refuses the end, it gets the least", status_code=error.status_code)
            update(status=end.status, result=_minimal_result(result))
    if complete:
        runs.redis.hset(job_key(run.job), "overall", 100)


def _minimal_result(result: dict[str, Any]) -> dict[str, Any]:
    """A result that no backend has a reason to refuse: short texts, the counts, no task's failure."""
    least = {
        name: shorten(value, MAX_TEXT_CHARS) if isinstance(value, str) else value
        for name, value in result.items()
    }
    return least | {"failures": []} if "failures" in least else least


def _send_messages(run: AnyRun, runs: Runs, backend: JobsApi) -> None:
    """Messages go out before what follows them; one whose answer was lost is not sent twice."""
    while entries := runs.events.pop_messages(run.job):
        try:
            backend.create_logs([{**entry, "job": backend_job_id(run.job)} for entry in entries])
        except (ClientConnectionError, RateLimitError, AuthenticationError):
            runs.events.requeue_messages(run.job, entries)
            raise
        except ClientError as error:
            log.warning("messages lost", error_type=type(error).__name__, count=len(entries))


def _seconds_until_next_patch(reported: Reported, runs: Runs) -> float:
    if reported.patched_at is None:
        return 0.0
    return reported.patched_at + SECONDS_BETWEEN_PATCHES - redis_time(runs.redis)


def stop_run(job: str, runs: Runs) -> bool:
    """End the run STOPPED; false when it had ended already (or is unknown)."""
    if not runs.store.exists(job):
        return False
    return runs.finish(job, STOPPED)
