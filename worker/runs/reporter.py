"""The outbox: reports a run to the backend, by one sender, in order, with the final status last."""

from collections.abc import Callable
from typing import Protocol

import structlog

from shared.channels import RETENTION_SECONDS, job_key
from shared.messages import JsonObject
from shared.statuses import JobStatus, is_final_status
from worker.blame import asks_for_later
from worker.lua import redis_time
from worker.platform import (
    AuthenticationError,
    ClientConnectionError,
    ClientError,
    HTTPError,
    NotFoundError,
    ValidationError,
    clean,
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
"""Statuses with which a backend rejects the content of a report, or its size."""
MAX_REJECTED_SECONDS = RETENTION_SECONDS
"""How long an end is reported again that the backend answers with 401, 403, 409, 410 or the like."""
MAX_TEXT_CHARS = 300
"""Of each text in the result that is sent after the whole result was rejected."""

Update = Callable[..., JsonObject]
"""Updates the job of the run that is reported."""


class JobsApi(Protocol):
    """The calls of the backend's client that reports need."""

    def get_job(self, job: str) -> JsonObject: ...
    def update_job(self, job: str, **fields: object) -> JsonObject: ...
    def create_logs(self, entries: list[JsonObject]) -> object: ...


class LeaseLostError(Exception):
    """Another worker reports the run by now: this process was suspended, and what it has read is stale."""


def report(
    job: str, runs: Runs, backend: JobsApi, is_reporter: Callable[[], bool] = lambda: True
) -> float | None:
    """Send what is new of the run; returns the seconds until there is more to send, or None.

    Raises `ClientError` when the backend did not accept it, and `LeaseLostError` when `is_reporter` says no
    right before the job is updated. The report is retried for both.
    """

    def update(**fields: object) -> JsonObject:
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


def report_unreadable(job: str, runs: Runs, backend: JobsApi) -> None:
    """Report the end of a run whose record cannot be read, as far as its public record says it.

    Raises `ClientError` as `report` does.
    """
    status, error = runs.redis.hmget(job_key(job), ["status", "error"])
    if is_final_status(status):
        backend.update_job(job, status=status, result={"error": error or ""})
        runs.store.mark_reported(job)
        runs.heartbeats.remove(run_member(job))


def give_up_rejected_end(job: str, error: ClientError, runs: Runs) -> bool:
    """Whether the backend rejected the run's end for a day; then it is reported no more, and its keys expire.

    A backend that is down or busy rejects nothing: to that one the end is reported for as long as it takes.
    """
    is_rejected = isinstance(error, HTTPError) and error.status_code < 500 and not asks_for_later(error)
    seconds = runs.store.seconds_since_end(job) if is_rejected else None
    if seconds is None or seconds < MAX_REJECTED_SECONDS:
        return False
    log.error("end given up", job=job, error_type=type(error).__name__, error=clean(str(error)))
    runs.store.mark_reported(job)
    runs.heartbeats.remove(run_member(job))
    return True


def _send_progress(
    run: AnyRun, reported: Reported, runs: Runs, backend: JobsApi, update: Update
) -> float | None:
    if reported.version == reported.version_sent:
        return None  # A second copy of this report: the first has sent everything.
    snapshot = runs.progress.snapshot(run.job, proportions_of(run.message))
    fields: JsonObject = {"progress_record": snapshot.progress, "metrics_record": snapshot.metrics}
    if not reported.is_running_sent:
        fields["status"] = JobStatus.RUNNING
    runs.store.mark_patched(run.job)
    try:
        status = update(**fields).get("status")
    except ValidationError:
        # A job that has ended accepts no progress.
        status = backend.get_job(run.job).get("status")
        if not is_final_status(status):
            raise
    # Again, because the client may have succeeded late, after a retry.
    runs.store.mark_patched(run.job, is_running_sent=True)
    if status == JobStatus.STOPPED:
        stop(run.job, runs)
    return SECONDS_BETWEEN_PATCHES if runs.store.acknowledge_report(run.job, reported.version) else None


def _send_end(run: AnyRun, end: End, runs: Runs, backend: JobsApi, update: Update) -> None:
    if run.position > 0 or not _has_ended_at_backend(run, backend):
        _patch_end(run, end, runs, backend, update)
    runs.store.mark_reported(run.job)
    runs.heartbeats.remove(run_member(run.job))
    log.info("end reported", status=end.status)


def _has_ended_at_backend(run: AnyRun, backend: JobsApi) -> bool:
    """Whether the backend has the end of a job that never began: an earlier stop has reported it."""
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
        log.error("job unknown to the backend", status=end.status)
    except HTTPError as error:
        if error.status_code not in REJECTED_STATUS_CODES:
            raise
        # A final status: the job was ended elsewhere first, or the answer to our first report was lost.
        if not is_final_status(backend.get_job(run.job).get("status")):
            log.warning("end rejected, reported without details", status_code=error.status_code)
            update(status=end.status, result=_minimal_result(result))
    if complete:
        runs.redis.hset(job_key(run.job), "overall", 100)


def _minimal_result(result: JsonObject) -> JsonObject:
    """A result that no backend has a reason to reject: short texts, the counts, no failures of tasks."""
    minimal = {
        name: shorten(value, MAX_TEXT_CHARS) if isinstance(value, str) else value
        for name, value in result.items()
    }
    return minimal | {"failures": []} if "failures" in minimal else minimal


def _send_messages(run: AnyRun, runs: Runs, backend: JobsApi) -> None:
    """Send messages before everything else. A message whose answer was lost is not sent twice."""
    while entries := runs.events.pop_messages(run.job):
        try:
            backend.create_logs([{**entry, "job": backend_job_id(run.job)} for entry in entries])
        except ClientError as error:
            if asks_for_later(error) or isinstance(error, ClientConnectionError | AuthenticationError):
                runs.events.requeue_messages(run.job, entries)
                raise
            log.warning("messages lost", error_type=type(error).__name__, count=len(entries))


def _seconds_until_next_patch(reported: Reported, runs: Runs) -> float:
    if reported.patched_at is None:
        return 0.0
    return reported.patched_at + SECONDS_BETWEEN_PATCHES - redis_time(runs.redis)


def stop(job: str, runs: Runs) -> bool:
    """End the run STOPPED; false when it had ended already (or is unknown)."""
    if not runs.store.exists(job):
        return False
    return runs.finish(job, STOPPED)
