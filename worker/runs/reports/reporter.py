"""The outbox: reports a run to the backend, by one sender, in order, with the final status last."""

from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from shared.channels import RETENTION_SECONDS, job_key
from shared.messages import JsonObject
from shared.statuses import JobStatus, is_final_status
from worker import tracing
from worker.blame import asks_for_later
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
from worker.runs.events import MessageEntry
from worker.runs.model import (
    STOPPED,
    AnyRun,
    DamagedRunError,
    End,
    backend_job_id,
    reading_record,
    stopped_job_result,
)
from worker.runs.progress import SECONDS_BETWEEN_PATCHES, Progress, Snapshot, proportions_of
from worker.runs.reports.outbox import MAX_MESSAGES, ReportClaim, ReportStatus
from worker.runs.runs import Runs, publish_current_step

log = structlog.get_logger(__name__)

LOCKED_SECONDS = 0.3
"""Until the next attempt while another worker sends the report."""
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


def report(job: str, runs: Runs, backend_of: Callable[[str | None], JobsApi]) -> float | None:
    """Send what is new of the run; returns the seconds until there may be more to send, or None.

    `backend_of` makes the client for a tenant. Raises `ClientError` when the backend did not accept the
    report, and `LeaseLostError` when another worker reports by now. The report is retried for both.
    """
    claim = runs.outbox.claim(job, runs.report_locks.new_token())
    if claim.status is ReportStatus.LOCKED:
        return LOCKED_SECONDS
    if claim.lease is None:
        return claim.wait if claim.status is ReportStatus.EARLY else None
    lease = claim.lease
    is_released = False
    try:
        try:
            run = claim.run(job)
            backend = backend_of(run.message.tenant)
        except Exception:
            runs.events.requeue_messages(job, claim.messages)
            raise

        def update(**fields: object) -> JsonObject:
            if not runs.report_locks.is_held(lease.key, lease.token):
                raise LeaseLostError
            return backend.update_job(job, **fields)

        # Between these two there may be one a second.
        is_traced = run.end is not None or not claim.is_running_sent
        with _report_span(run) if is_traced else tracing.NO_SPAN, runs.report_locks.renewing(lease):
            _send_messages(job, claim.messages, runs, backend)
            if run.end is not None:
                _send_end(run, run.end, claim, runs, backend, update)
                return None
            if claim.version is not None:
                _send_progress(run, claim, runs, backend, update)
        more = runs.outbox.acknowledge(job, lease, claim.version)
        is_released = True
        return SECONDS_BETWEEN_PATCHES if more else None
    finally:
        if not is_released:
            runs.report_locks.release(lease)


def _report_span(run: AnyRun) -> tracing.Span:
    """A span for this report in the trace of its run, if that has one."""
    if not run.traceparent:
        return tracing.NO_SPAN
    attributes = {"synapse.job": run.job, "synapse.action": run.message.action}
    return tracing.task_span("report", run.traceparent, run.job, attributes, kind="INTERNAL")


def report_unreadable(job: str, runs: Runs, backend: JobsApi) -> None:
    """Report the end of a run whose record cannot be read, as far as its public record says it.

    Raises `ClientError` as `report` does.
    """
    status, error = runs.redis.hmget(job_key(job), ["status", "error"])
    if not is_final_status(status):
        if not runs.store.has_ended(job):
            return
        status, error = JobStatus.FAILED, f"the record of job {job}'s run is damaged"
    backend.update_job(job, status=status, result={"error": clean(error or "")})
    runs.mark_reported(job)


def give_up_rejected_end(job: str, error: ClientError, runs: Runs) -> bool:
    """Whether the backend rejected the run's end for a day; then it is reported no more, and its keys expire.

    A backend that is down or busy rejects nothing: to that one the end is reported for as long as it takes.
    """
    is_rejected = isinstance(error, HTTPError) and error.status_code < 500 and not asks_for_later(error)
    seconds = runs.store.seconds_since_end(job) if is_rejected else None
    if seconds is None or seconds < MAX_REJECTED_SECONDS:
        return False
    log.error("end given up", job=job, error_type=type(error).__name__, error=clean(str(error)))
    runs.mark_reported(job)
    return True


def _send_progress(run: AnyRun, claim: ReportClaim, runs: Runs, backend: JobsApi, update: Update) -> None:
    snapshot = _snapshot(run, claim)
    fields: JsonObject = {"progress_record": snapshot.progress, "metrics_record": snapshot.metrics}
    if not claim.is_running_sent:
        fields["status"] = JobStatus.RUNNING
    try:
        status = update(**fields).get("status")
    except ValidationError:
        # A job that has ended accepts no progress.
        status = backend.get_job(run.job).get("status")
        if not is_final_status(status):
            raise
    if status == JobStatus.STOPPED:
        stop(run.job, runs)


def _snapshot(run: AnyRun, claim: ReportClaim, *, is_complete: bool = False) -> Snapshot:
    proportions = proportions_of(run.message)
    try:
        with reading_record(run.job):
            overall = float(claim.record.get("overall") or 0)
            return Progress.snapshot_of(
                claim.progress, overall, claim.now, proportions, is_complete=is_complete
            )
    except DamagedRunError as error:
        # The end, if it has come, is worth more.
        log.warning("progress left out of the report", error=str(error))
        return Progress.snapshot_of({}, 0.0, claim.now, proportions, is_complete=is_complete)


def _send_end(
    run: AnyRun, end: End, claim: ReportClaim, runs: Runs, backend: JobsApi, update: Update
) -> None:
    if run.position > 0 or not _has_ended_at_backend(run, backend):
        _patch_end(run, end, claim, runs, backend, update)
    runs.mark_reported(run.job)
    log.info("end reported", status=end.status)


def _has_ended_at_backend(run: AnyRun, backend: JobsApi) -> bool:
    """Whether the backend has the end of a job that never began: an earlier stop has reported it."""
    try:
        return is_final_status(backend.get_job(run.job).get("status"))
    except NotFoundError:
        return False


def _patch_end(
    run: AnyRun, end: End, claim: ReportClaim, runs: Runs, backend: JobsApi, update: Update
) -> None:
    complete = end.status is JobStatus.SUCCEEDED
    snapshot = _snapshot(run, claim, is_complete=complete)
    result = end.result
    if end.status is JobStatus.STOPPED:
        with reading_record(run.job):
            result = stopped_job_result(run.message.task, claim.record)
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


def _send_messages(job: str, claimed: Sequence[MessageEntry], runs: Runs, backend: JobsApi) -> None:
    """Send messages before everything else. A message whose answer was lost is not sent twice."""
    entries = list(claimed)
    while entries:
        try:
            backend.create_logs([{**entry, "job": backend_job_id(job)} for entry in entries])
        except ClientError as error:
            if asks_for_later(error) or isinstance(error, ClientConnectionError | AuthenticationError):
                runs.events.requeue_messages(job, entries)
                raise
            log.warning("messages lost", error_type=type(error).__name__, count=len(entries))
        entries = runs.events.pop_messages(job, MAX_MESSAGES) if len(entries) == MAX_MESSAGES else []


def stop(job: str, runs: Runs) -> bool:
    """End the run STOPPED; false when it had ended already (or is unknown)."""
    if not runs.store.exists(job):
        return False
    if not runs.finish(job, STOPPED):
        return False
    # A step that waits by countdown cleans up at once, and not at its next delivery.
    publish_current_step(runs.store.load(job), runs)
    return True
