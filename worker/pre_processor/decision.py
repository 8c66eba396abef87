"""The state of a dispatch, and what a poll decides from it. Pure: reads no Redis, no backend and no clock."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from shared.statuses import JobStatus, is_failed_status, is_final_status
from worker.pre_processor.serve_application import (
    GONE,
    JobState,
    Record,
    classify_serve_app,
    counts_as_failed,
    snapshot_of,
)

APPLICATION_FAILED = "Pre-processor deployment failed: serve application reached terminal state ({status})"
JOB_FAILED = "Pre-processor deployment failed: job reached terminal state ({status})"
TIMED_OUT = "Pre-processor did not become ready within timeout"

UNSENT_CLAIM_SECONDS = 20
"""An unsent claim expires after this time; its owner may no longer dispatch."""

PUBLISH_SECONDS = 5.0
"""A backend that accepted a dispatch has published the deployment's message within this time."""


class DispatchState(StrEnum):
    """How far the dispatch of a deployment has come."""

    CLAIMED = "claimed"
    """One run may send the request; it has not begun to."""
    SENT = "sent"
    """The request may have reached the backend; the job of the deployment is not known."""
    KNOWN = "known"
    """The job of the deployment is known."""
    ENDED = "ended"
    """The job succeeded, or the backend does not know it; its application has not been seen running yet."""
    FAILED = "failed"
    """The request failed; the runs that wait are still to be failed with its message."""


@dataclass(frozen=True)
class Dispatch:
    """The deployment that one run of a waiting list asks the backend for. Times are Redis's, in seconds."""

    token: str
    """Names the claim: only its owner's writes are accepted."""
    claimed_at: float
    claimed_by: str = ""
    """The run whose step dispatches."""
    sent_at: float | None = None
    """When the request began, or when the latest event that gives its reply more time happened."""
    snapshot: Mapping[str, str] = field(default_factory=dict)
    """The application records before the request that have not changed since: status by id."""
    job: str | None = None
    ended_at: float | None = None
    """When a poll first saw that the job had ended without a failure, or was gone."""
    job_unverified: bool = False
    """The job may have ended while no run waited, so its failure is not that of the runs that wait now."""
    failure: str | None = None
    maybe_accepted: bool = False
    """The request failed in a way that leaves open whether the backend accepted it."""
    no_reply_since: float | None = None
    """Since when polls in a row have found that no reply can be expected from the dispatching run."""
    last_polled_at: float | None = None
    """The latest of those polls."""

    @property
    def state(self) -> DispatchState:
        """How far it has come."""
        if self.failure is not None:
            return DispatchState.FAILED
        if self.sent_at is None:
            return DispatchState.CLAIMED
        if self.ended_at is not None:
            return DispatchState.ENDED
        return DispatchState.SENT if self.job is None else DispatchState.KNOWN

    @property
    def lacks_job(self) -> bool:
        """Whether the request was sent and its job is not known."""
        return self.sent_at is not None and self.job is None

    @classmethod
    def from_hash(cls, stored: Mapping[str, str]) -> "Dispatch | None":
        """Read the fields of a waiting list's hash; None when no run has claimed the dispatch."""
        values = {
            name: each.decode(stored[each.name])
            for name, each in DISPATCH_FIELDS.items()
            if stored.get(each.name)
        }
        return cls(**values) if "token" in values else None

    def changes(self, after: "Dispatch") -> dict[str, object]:
        """The attributes that differ in `after`, with their new values."""
        return {
            name: getattr(after, name)
            for name in DISPATCH_FIELDS
            if getattr(after, name) != getattr(self, name)
        }


@dataclass(frozen=True)
class StoredField:
    """A field of the hash and how its text is read."""

    name: str
    decode: Callable[[str], Any] = str


def _flag(text: str) -> bool:
    return text == "1"


DISPATCH_FIELDS: Final[Mapping[str, StoredField]] = {
    "token": StoredField("token"),
    "claimed_by": StoredField("by"),
    "claimed_at": StoredField("claimed", float),
    "sent_at": StoredField("sent", float),
    "snapshot": StoredField("snapshot", json.loads),
    "job": StoredField("job"),
    "ended_at": StoredField("ended", float),
    "job_unverified": StoredField("doubtful", _flag),
    "failure": StoredField("failure"),
    "maybe_accepted": StoredField("unclear", _flag),
    "no_reply_since": StoredField("silent", float),
    "last_polled_at": StoredField("looked", float),
}
"""How a `Dispatch` is stored, attribute by attribute. Workers of older versions read these fields."""

DISPATCH_FIELD_NAMES: Final = json.dumps({name: each.name for name, each in DISPATCH_FIELDS.items()})
"""The same for the scripts, which name the fields by the attributes."""


def stored_fields(values: Mapping[str, object]) -> dict[str, str | float]:
    """Attributes of a `Dispatch` as fields of the hash."""
    return {DISPATCH_FIELDS[name].name: _encode(value) for name, value in values.items()}


def _encode(value: object) -> str | float:
    match value:
        case None:
            return ""  # an older worker reads an empty field as one that is not set
        case bool():
            return int(value)
        case str() | float():
            return value
        case _:
            return json.dumps(value)


class DecisionKind(StrEnum):
    """What to do with the runs that wait."""

    READY = "ready"
    FAILED = "failed"
    LOST = "lost"
    """There is no dispatch, or nothing came of it: one of the runs is to dispatch."""
    PENDING = "pending"


@dataclass(frozen=True)
class Decision:
    """What a poll is to do and to write."""

    kind: DecisionKind
    dispatch: Dispatch | None = None
    """The dispatch as it is to be stored; None when there is none, or none any more."""
    message: str = ""
    """Of a failure: what users read."""


@dataclass(frozen=True)
class Observation:
    """What a poll has seen."""

    records: Sequence[Record]
    """The application records of the release; where the dispatched job is known, not all of them."""
    job_status: JobState | None
    """Of the dispatched job; None when it is not known."""
    now: float
    """Redis's clock."""
    is_dispatcher_alive: bool = True
    """Whether a worker holds the lock of the dispatching step, so that the job may still become known."""
    unread_deployments: int = 0
    """Messages in the queues that the deployment's own message may be among."""


@dataclass(frozen=True)
class Timeouts:
    """When a dispatch counts as lost."""

    ended_seconds: float
    """After its job has ended without an application being seen."""
    reply_seconds: float
    """After a request whose job did not become known."""

    @classmethod
    def of(cls, wait_seconds: float, visibility_timeout: float) -> "Timeouts":
        """For runs that wait `wait_seconds` at most."""
        ended = max(30.0, wait_seconds / 3)
        # By then the broker has redelivered the message of a dead dispatcher, and the backend has published
        # the deployment's message.
        return cls(ended_seconds=ended, reply_seconds=min(visibility_timeout + PUBLISH_SECONDS, ended))


def evaluate(dispatch: Dispatch | None, seen: Observation, timeouts: Timeouts) -> Decision:
    """Decide what becomes of the runs that wait, and what of their dispatch."""
    dispatch = _track_missing_reply(dispatch, seen, timeouts)
    if classify_serve_app(seen.records)[0] == "running":
        return Decision(DecisionKind.READY, dispatch)
    if dispatch is None:
        return Decision(DecisionKind.LOST)
    if _is_lost(dispatch, seen, timeouts):
        # A run that joins takes an expired claim over by itself.
        is_claim = dispatch.state is DispatchState.CLAIMED
        return Decision(DecisionKind.LOST, dispatch if is_claim else None)
    failure = _failure(dispatch, seen)
    if failure is not None:
        return Decision(DecisionKind.FAILED, dispatch, failure)
    return Decision(DecisionKind.PENDING, _after_poll(dispatch, seen))


def lost_at(dispatch: Dispatch | None, timeouts: Timeouts) -> float | None:
    """When a dispatch whose job is not known counts as lost."""
    if dispatch is None or dispatch.sent_at is None or dispatch.job is not None:
        return None
    return max(dispatch.sent_at + timeouts.reply_seconds, (dispatch.no_reply_since or 0.0) + PUBLISH_SECONDS)


def after_failure(dispatch: Dispatch) -> Dispatch | None:
    """The dispatch after all runs that waited have failed with it; None when it is over.

    A deployment that the backend may have accepted is waited for by the runs that come next.
    """
    return replace(dispatch, failure=None, maybe_accepted=False) if dispatch.maybe_accepted else None


def application_failed(status: str) -> RuntimeError:
    """The error for an application in a terminal state."""
    return RuntimeError(APPLICATION_FAILED.format(status=status))


def job_failed(status: str) -> RuntimeError:
    """The error for a deployment whose job ended without success."""
    return RuntimeError(JOB_FAILED.format(status=status))


def timed_out() -> RuntimeError:
    """The error for a run that has waited as long as it may."""
    return RuntimeError(TIMED_OUT)


def _track_missing_reply(dispatch: Dispatch | None, seen: Observation, timeouts: Timeouts) -> Dispatch | None:
    """Count the time in which workers have been up to read what the backend published of the dispatch.

    The age of the request does not show it: all workers may have been away since, and find this poll and the
    deployment's message in the queues at the same time. While deployments are unread (the workers of that
    queue may be away or busy), any of them may be the one that was asked for.
    """
    if dispatch is None or not dispatch.lacks_job or seen.is_dispatcher_alive:
        return dispatch
    since, last = dispatch.no_reply_since, dispatch.last_polled_at
    polled_lately = last is not None and seen.now - last <= timeouts.reply_seconds
    if seen.unread_deployments or since is None or not polled_lately:
        since = seen.now
    sent_at = seen.now if seen.unread_deployments else dispatch.sent_at
    return replace(dispatch, sent_at=sent_at, no_reply_since=since, last_polled_at=seen.now)


def _is_lost(dispatch: Dispatch, seen: Observation, timeouts: Timeouts) -> bool:
    match dispatch.state:
        case DispatchState.CLAIMED:
            return seen.now - dispatch.claimed_at > UNSENT_CLAIM_SECONDS
        case DispatchState.FAILED:
            return False
        case DispatchState.SENT:
            return _is_reply_overdue(dispatch, seen, timeouts)
    if dispatch.job_unverified and is_final_status(seen.job_status):
        return True  # it ended while no run waited
    # A backend may take back that it does not know a job: a replica of its database can lag behind.
    is_over = dispatch.ended_at is not None and seen.now - dispatch.ended_at > timeouts.ended_seconds
    return is_over and _may_have_application(seen.job_status)


def _is_reply_overdue(dispatch: Dispatch, seen: Observation, timeouts: Timeouts) -> bool:
    if dispatch.sent_at is None or dispatch.no_reply_since is None or seen.is_dispatcher_alive:
        return False
    if any(_is_starting(record, dispatch) for record in seen.records):
        return False
    return (
        seen.now - dispatch.no_reply_since >= PUBLISH_SECONDS
        and seen.now - dispatch.sent_at > timeouts.reply_seconds
    )


def _is_starting(record: Record, dispatch: Dispatch) -> bool:
    """Whether the record is new or has changed since the request, and has not failed."""
    changed = counts_as_failed(record, None, dispatch.snapshot)
    return changed and not is_failed_status(record.get("status"))


def _may_have_application(job_status: JobState | None) -> bool:
    """Whether the job has ended in a way that can leave an application that is not seen yet."""
    return job_status in (JobStatus.SUCCEEDED, GONE)


def _failure(dispatch: Dispatch, seen: Observation) -> str | None:
    """The message with which the runs that wait fail, or None."""
    if dispatch.state is DispatchState.FAILED:
        return dispatch.failure
    if dispatch.state is DispatchState.CLAIMED:
        return None  # whatever failed, failed before the request
    counting = [
        record for record in seen.records if counts_as_failed(record, dispatch.job, dispatch.snapshot)
    ]
    bucket, status = classify_serve_app(counting)
    if bucket == "failed":
        return str(application_failed(str(status)))
    if seen.job_status in (JobStatus.FAILED, JobStatus.STOPPED):
        return str(job_failed(str(seen.job_status)))
    return None


def _after_poll(dispatch: Dispatch, seen: Observation) -> Dispatch:
    """The dispatch with what the next poll must know of this one."""
    current = snapshot_of(seen.records)
    # A poll does not see all records; those that it does not see are taken to be as they were.
    unchanged = {
        key: status for key, status in dispatch.snapshot.items() if current.get(key, status) == status
    }
    ended_at, job_unverified = dispatch.ended_at, dispatch.job_unverified
    if _may_have_application(seen.job_status):
        ended_at = seen.now if ended_at is None else ended_at
    elif seen.job_status is not None:
        ended_at = None  # the backend knows the job after all
    if seen.job_status not in (None, GONE):
        job_unverified = False  # it has not ended before these runs began to wait
    return replace(dispatch, snapshot=unchanged, ended_at=ended_at, job_unverified=job_unverified)
