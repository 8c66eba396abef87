"""The one poll of a waiting list: read, decide, write, and resume or fail the runs that wait."""

from dataclasses import dataclass

import structlog

from shared.messages import DeployMessage
from shared.statuses import JobStatus
from worker.blame import INFRASTRUCTURE_ERRORS
from worker.platform import clean
from worker.pre_processor.decision import (
    TIMED_OUT,
    Decision,
    DecisionKind,
    Dispatch,
    DispatchState,
    Observation,
    Timeouts,
    after_failure,
    evaluate,
    lost_at,
)
from worker.pre_processor.serve_application import job_status, list_records
from worker.pre_processor.waitlist import DISPATCH, FETCH_TASKS, FIRST_POLL_SECONDS, Waitlist
from worker.runs.bulkhead import exponential
from worker.runs.heartbeat import run_member
from worker.runs.keys import lock_key
from worker.runs.model import End, Step
from worker.runs.runs import Runs
from worker.services import Services

log = structlog.get_logger(__name__)

MAX_WAITERS_PER_POLL = 500
"""A poll must end well before its message is delivered again; the next poll goes on with the rest."""

BACKOFF_FACTOR = 1.5


@dataclass(frozen=True)
class NextPoll:
    """The poll is to be published again, after `countdown` seconds."""

    countdown: float
    generation: int
    attempt: int


@dataclass(frozen=True)
class Waiter:
    """A run that waits, its deadline by Redis's clock, and the queue of its steps."""

    job: str
    deadline: float
    queue: str


def await_ready(waitlist: Waitlist, generation: int, attempt: int, services: Services) -> NextPoll | None:
    """Poll once, of a generation that is claimed and under the list's lock; None when the polling is over."""
    runs, member = services.runs, waitlist.name.member
    runs.heartbeats.schedule(member)
    countdown = _poll_once(waitlist, services, attempt)
    # Removed before the end is written, because a run that joins after the end registers it anew.
    runs.heartbeats.remove(member)
    said, following = waitlist.end_poll(generation)
    if said == "ended":
        return None
    runs.heartbeats.schedule(member, countdown)
    return NextPoll(countdown, following, attempt + 1) if said == "again" else None


def _poll_once(waitlist: Waitlist, services: Services, attempt: int) -> float:
    """Decide about the runs that wait and act on it; returns the seconds until the next poll."""
    runs, settings = services.runs, services.settings
    waiters = active_waiters(waitlist, runs)
    dispatch = waitlist.dispatch()
    if not waiters:
        if dispatch is not None and dispatch.state is DispatchState.FAILED:
            waitlist.save_dispatch(dispatch, after_failure(dispatch))
        return 0.0
    timeouts = Timeouts.of(settings.worker_pre_processor_timeout_seconds, runs.timing.visibility_timeout)
    decision = _decide(waitlist, dispatch, services, timeouts)
    if dispatch is not None:
        waitlist.save_dispatch(dispatch, decision.dispatch)
    batch = waiters[:MAX_WAITERS_PER_POLL]
    if decision.kind is DecisionKind.READY:
        resume(batch, waitlist, runs)
        return 0.0
    if decision.kind is DecisionKind.FAILED:
        fail(batch, decision.message, waitlist, runs)
        if batch == waiters and decision.dispatch is not None:
            waitlist.save_dispatch(decision.dispatch, after_failure(decision.dispatch))
        return 0.0
    now = waitlist.now()
    fail([each for each in batch if each.deadline <= now], TIMED_OUT, waitlist, runs)
    left = [each for each in waiters if each.deadline > now]
    if left and decision.kind is DecisionKind.LOST:
        redispatch(left, runs)
    moments = [each.deadline for each in left]
    if decision.kind is DecisionKind.PENDING:
        due = lost_at(decision.dispatch, timeouts)
        moments += [due] if due is not None and due > now else []
    ceiling = min(settings.worker_pre_processor_poll_seconds, runs.timing.max_countdown)
    return min(poll_backoff(attempt, ceiling), min(moments, default=now) - now + 0.01)


def _decide(
    waitlist: Waitlist, dispatch: Dispatch | None, services: Services, timeouts: Timeouts
) -> Decision:
    """Observe and evaluate. After an unreadable answer the runs wait on: it must not end the polling."""
    try:
        return evaluate(dispatch, _observe(waitlist, dispatch, services), timeouts)
    except INFRASTRUCTURE_ERRORS:
        raise
    except Exception as error:
        log.warning("poll failed", error_type=type(error).__name__, error=clean(str(error)))
        return Decision(DecisionKind.PENDING, dispatch)


def _observe(waitlist: Waitlist, dispatch: Dispatch | None, services: Services) -> Observation:
    name = waitlist.name
    backend = services.backend(name.tenant or None)
    records = list_records(backend, name.target)
    status = job_status(backend, dispatch.job if dispatch else None)
    is_alive, unread = True, 0
    if dispatch is not None and dispatch.lacks_job:
        is_alive = bool(services.redis.exists(lock_key(dispatch.claimed_by, DISPATCH.name)))
        if not is_alive:
            queues = (DeployMessage.queue, DeployMessage.agent_queue(name.agent))
            unread = sum(services.runs.publisher.queue_length(queue) for queue in queues)
    return Observation(records, status, waitlist.now(), is_alive, unread)


def poll_backoff(attempt: int, ceiling: float) -> float:
    """Seconds until the next poll: half a second at first, then growing up to `ceiling`."""
    return exponential(attempt, ceiling, first=FIRST_POLL_SECONDS, factor=BACKOFF_FACTOR)


def active_waiters(waitlist: Waitlist, runs: Runs) -> list[Waiter]:
    """The runs that wait, the earliest deadline first; takes those off that have ended or gone on."""
    waiters = waitlist.waiters()
    standings = runs.store.standings(job for job, _ in waiters)
    here = [
        Waiter(job, deadline, standing.queue)
        for (job, deadline), standing in zip(waiters, standings, strict=True)
        if standing and not standing.has_ended and standing.position <= DISPATCH.position
    ]
    staying = {waiter.job for waiter in here}
    for (job, _), standing in zip(waiters, standings, strict=True):
        if standing and standing.has_ended:
            runs.ensure_end_reported(job)  # the worker that wrote the end may have died before it sent it
    waitlist.remove(*(job for job, _ in waiters if job not in staying))
    return here


def resume(waiters: list[Waiter], waitlist: Waitlist, runs: Runs) -> None:
    """Publish the runs' next step. A run leaves the list after that, so a crash only repeats the message."""
    for waiter in waiters:
        runs.heartbeats.schedule(run_member(waiter.job))
        _send(FETCH_TASKS, waiter, {}, runs)
        waitlist.remove(waiter.job)


def fail(waiters: list[Waiter], message: str, waitlist: Waitlist, runs: Runs) -> None:
    """End the runs FAILED with `message`."""
    for waiter in waiters:
        runs.finish(waiter.job, End(JobStatus.FAILED, {"error": message}))
        waitlist.remove(waiter.job)


def redispatch(waiters: list[Waiter], runs: Runs) -> None:
    """Let the run with the latest deadline join again. However often this is sent, one run gets the claim."""
    waiter = waiters[-1]
    _send(DISPATCH, waiter, {"generation": runs.generations.newest(waiter.job, DISPATCH.name)}, runs)


def _send(step: Step, waiter: Waiter, kwargs: dict[str, int], runs: Runs) -> None:
    runs.publisher.publish(step, step.queue or waiter.queue, {"job": waiter.job, **kwargs})
