"""What a look at the backend means for those who wait. Knows no Redis and no clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from shared.statuses import JobStatus
from worker.pre_processor import dispatch as errors
from worker.pre_processor.serve_application import (
    FAILED_STATUSES,
    GONE,
    Record,
    classify_serve_app,
    counts_as_failed,
)
from worker.pre_processor.waitlist import UNSENT_CLAIM_SECONDS, Dispatch

FINAL = frozenset(status for status in JobStatus if status.is_final)


class DecisionKind(StrEnum):
    """What to do with the waiters."""

    READY = "ready"
    FAILED = "failed"
    LOST = "lost"
    """Nothing came of the dispatch, or there is none: somebody is to dispatch."""
    PENDING = "pending"


@dataclass(frozen=True)
class Decision:
    """`message` is what users read of a failure."""

    kind: DecisionKind
    message: str = ""


def evaluate(
    records: Sequence[Record],
    dispatch: Dispatch | None,
    job_status: str | None,
    now: float,
    patience: float,
    silence: float | None = None,
) -> Decision:
    """`records` are those of the release; `job_status` is the dispatched job's, None when it is not known.

    `patience`: seconds for which a deployment that has ended may take to be seen. `silence`: seconds after
    which a dispatch whose answer nobody got counts as lost; None while its dispatcher waits for the answer.
    """
    if classify_serve_app(records)[0] == "running":
        return Decision(DecisionKind.READY)
    if dispatch is None or _is_lost(dispatch, records, job_status, now, patience, silence):
        return Decision(DecisionKind.LOST)
    if dispatch.failure is not None:
        return Decision(DecisionKind.FAILED, dispatch.failure)
    if dispatch.sent is None:
        return Decision(DecisionKind.PENDING)
    counting = [record for record in records if counts_as_failed(record, dispatch.job, dispatch.snapshot)]
    bucket, status = classify_serve_app(counting)
    if bucket == "failed":
        return Decision(DecisionKind.FAILED, str(errors.application_failed(str(status))))
    if job_status in (JobStatus.FAILED, JobStatus.STOPPED):
        return Decision(DecisionKind.FAILED, str(errors.job_failed(str(job_status))))
    return Decision(DecisionKind.PENDING)


def may_still_come(job_status: str | None) -> bool:
    """Whether the job has ended in a way of which an application can have come that is not seen yet."""
    return job_status in (JobStatus.SUCCEEDED, GONE)


def _is_lost(
    dispatch: Dispatch,
    records: Sequence[Record],
    job_status: str | None,
    now: float,
    patience: float,
    silence: float | None,
) -> bool:
    if dispatch.sent is None:
        return now - dispatch.claimed > UNSENT_CLAIM_SECONDS
    if dispatch.failure is not None:
        return False
    if dispatch.job_unverified and job_status in FINAL:
        return True  # it ended while nobody waited: its end is none of those who wait now
    if dispatch.job is None:
        came = any(_is_on_its_way(record, dispatch) for record in records)
        return not came and silence is not None and now - dispatch.sent > silence
    # What a backend says once, it may take back: a copy of its database that lags does not know a new job.
    return dispatch.ended is not None and now - dispatch.ended > patience and may_still_come(job_status)


def _is_on_its_way(record: Record, dispatch: Dispatch) -> bool:
    changed = counts_as_failed(record, None, dispatch.snapshot)
    return changed and record.get("status") not in FAILED_STATUSES
