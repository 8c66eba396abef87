"""The one poll of a room: ask the backend, let everybody out, fail everybody, or look again later."""

import json
from dataclasses import dataclass
from typing import Any

import structlog

from shared.messages import DeployMessage
from worker.platform import clean
from worker.pre_processor import dispatch as errors
from worker.pre_processor import waitlist
from worker.pre_processor.decision import Decision, DecisionKind, evaluate, may_still_come
from worker.pre_processor.serve_application import GONE, JobState, Record, job_status, records, snapshot_of
from worker.pre_processor.waitlist import DISPATCH, Dispatch, Waitlist, WaitlistName, poll_backoff
from worker.runs.keys import lock_key
from worker.services import Services
from worker.workflow.task import INFRASTRUCTURE_ERRORS

log = structlog.get_logger(__name__)

BATCH = 500
"""Waiters that one turn sees to: it must end well before its message is delivered again."""
LOCKED_SECONDS = 0.3
LEAST_PATIENCE_SECONDS = 30.0
SECONDS_TO_PUBLISH = 5.0
"""In which a backend that got a dispatch has published the deployment's message."""


@dataclass(frozen=True)
class Again:
    """The poll comes back."""

    countdown: float
    generation: int
    attempt: int = 0
    redelivered: bool = False
    """Nobody knows how far the poll came before."""


def poll(key: str, generation: int, services: Services, *, redelivered: bool, attempt: int) -> Again | None:
    """One turn of the room `key`; None when the polling is over or a newer poll is out."""
    runs, name = services.runs, WaitlistName.parse(key)
    room = Waitlist(runs.redis, name)
    token = runs.locks.new_token()
    if not runs.locks.acquire(room.lock, token):
        return Again(LOCKED_SECONDS, generation, attempt, redelivered)
    with runs.locks.hold(room.lock, token):
        said, newest = room.claim_poll(generation, redelivered)
        if said == "republish":
            return Again(LOCKED_SECONDS, newest, attempt)
        if said == "stale":
            return None
        runs.heartbeats.schedule(name.member)
        countdown = _turn(room, services, attempt)
        # Forgotten before the end is written: whoever joins after the end says anew that the room lives.
        runs.heartbeats.remove(name.member)
        said, following = room.end_poll(generation)
        if said == "ended":
            return None
        runs.heartbeats.schedule(name.member, countdown)
        return Again(countdown, following, attempt + 1) if said == "again" else None


def _turn(room: Waitlist, services: Services, attempt: int) -> float:
    """See to the waiters; returns the seconds until the next look."""
    runs, settings = services.runs, services.settings
    here = waitlist.active_waiters(room, runs)
    if not here:
        _end_failed_dispatch(room)
        return 0.0
    dispatch = room.dispatch()
    verdict = _look(room, dispatch, services)
    lost_at = _lost_at(room.dispatch(), services) if verdict.kind is DecisionKind.PENDING else None
    due = here[:BATCH]
    if verdict.kind is DecisionKind.READY:
        waitlist.resume(due, room, runs)
        return 0.0
    if verdict.kind is DecisionKind.FAILED:
        waitlist.fail(due, verdict.message, room, runs)
        if due == here and dispatch is not None:
            _end_dispatch(room, dispatch)
        return 0.0
    now = room.now()
    waitlist.fail([each for each in due if each.deadline <= now], errors.TIMED_OUT, room, runs)
    left = [each for each in here if each.deadline > now]
    if left and verdict.kind is DecisionKind.LOST:
        waitlist.redispatch(left, runs)
    ceiling = min(settings.worker_pre_processor_poll_seconds, runs.timing.max_countdown)
    moments = [each.deadline for each in left] + ([lost_at] if lost_at is not None and lost_at > now else [])
    return min(poll_backoff(attempt, ceiling), min(moments, default=now) - now + 0.01)


def _look(room: Waitlist, dispatch: Dispatch | None, services: Services) -> Decision:
    """Ask the backend. No answer may strand those who wait: what cannot be read means to look again."""
    try:
        return _ask(room, dispatch, services)
    except INFRASTRUCTURE_ERRORS:
        raise
    except Exception as error:
        log.warning("poll failed", error_type=type(error).__name__, error=clean(str(error)))
        return Decision(DecisionKind.PENDING)


def _ask(room: Waitlist, dispatch: Dispatch | None, services: Services) -> Decision:
    backend = services.backend(room.name.tenant or None)
    found = records(backend, room.name.target)
    status = job_status(backend, dispatch.job if dispatch else None)
    patience = max(LEAST_PATIENCE_SECONDS, services.settings.worker_pre_processor_timeout_seconds / 3)
    silence = _silence(services) if dispatch and _is_heard_out(room, dispatch, services) else None
    verdict = evaluate(found, dispatch, status, room.now(), patience, silence)
    if dispatch is not None and verdict.kind is DecisionKind.PENDING:
        _remember(room, dispatch, found, status)
    if dispatch is not None and verdict.kind is DecisionKind.LOST and dispatch.sent is not None:
        room.clear_dispatch(dispatch.token)
    return verdict


def _silence(services: Services) -> float:
    """Seconds. By then the broker has delivered again what a dead dispatcher held, and the backend has
    published what it got of it."""
    timeout = services.settings.worker_pre_processor_timeout_seconds
    delivered_again = services.runs.timing.visibility_timeout + SECONDS_TO_PUBLISH
    return min(delivered_again, max(LEAST_PATIENCE_SECONDS, timeout / 3))


def _is_heard_out(room: Waitlist, dispatch: Dispatch, services: Services) -> bool:
    """Whether workers have been up for long enough to read what the backend published of the dispatch.

    Its own age does not say so: all of them may have been away since, and find this poll and the deployment's
    message in the queues at the same time.
    """
    if dispatch.sent is None or dispatch.job is not None or _dispatcher_lives(dispatch, services):
        return False
    unread = _is_deploy_unread(room, services)
    if unread:
        room.extend_deadline()
    now, since = room.now(), dispatch.no_reply_since
    if (
        unread
        or since is None
        or dispatch.last_polled is None
        or now - dispatch.last_polled > _silence(services)
    ):
        since = now
    room.update_dispatch(dispatch.token, silent=since, looked=now)
    return now - since >= SECONDS_TO_PUBLISH


def _is_deploy_unread(room: Waitlist, services: Services) -> bool:
    """Whether there are deployments that nobody has taken; any of them may be what came of the dispatch.

    The workers of `deploy` may be away, or busy, while those of `to_task` poll.
    """
    queues = (DeployMessage.queue, DeployMessage.agent_queue(room.name.agent))
    return any(services.runs.publisher.queue_length(queue) for queue in queues)


def _dispatcher_lives(dispatch: Dispatch, services: Services) -> bool:
    return bool(services.redis.exists(lock_key(dispatch.by, DISPATCH.name)))


def _lost_at(dispatch: Dispatch | None, services: Services) -> float | None:
    """When a dispatch that nobody has heard of counts as lost."""
    if dispatch is None or dispatch.sent is None or dispatch.job is not None:
        return None
    heard_out = (dispatch.no_reply_since or 0.0) + SECONDS_TO_PUBLISH
    return max(dispatch.sent + _silence(services), heard_out)


def _remember(room: Waitlist, dispatch: Dispatch, found: list[Record], status: JobState | None) -> None:
    """What this look has shown that the next one must know."""
    news: dict[str, Any] = {}
    current = snapshot_of(found)
    unchanged = {key: was for key, was in dispatch.snapshot.items() if current.get(key) == was}
    if unchanged != dispatch.snapshot:
        news["snapshot"] = json.dumps(unchanged)
    known = status is not None and status != GONE
    if known and dispatch.job_unverified:
        news["doubtful"] = 0  # it has not ended, so its end will be the end of those who wait now
    if may_still_come(status) and dispatch.ended is None:
        news["ended"] = room.now()
    elif known and not may_still_come(status) and dispatch.ended is not None:
        news["ended"] = ""  # the backend knows the job after all
    if news:
        room.update_dispatch(dispatch.token, **news)


def _end_failed_dispatch(room: Waitlist) -> None:
    """Everybody has left; a dispatch that was refused is none of those who come next."""
    dispatch = room.dispatch()
    if dispatch is not None and dispatch.failure is not None:
        _end_dispatch(room, dispatch)


def _end_dispatch(room: Waitlist, dispatch: Dispatch) -> None:
    """It has failed everybody. One that the backend may have taken all the same stays for newcomers."""
    if dispatch.maybe_accepted:
        room.update_dispatch(dispatch.token, failure="", unclear=0)
    else:
        room.clear_dispatch(dispatch.token)
