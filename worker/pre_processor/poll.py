"""The one poll of a waiting list: read, decide, write, and resume or fail the runs that wait."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from worker.pre_processor.diagnosis import PROGRESS, Diagnosis, diagnose
from worker.pre_processor.serve_application import (
    classify_serve_app,
    explained,
    job_status,
    list_recent_records,
    list_records,
)
from worker.pre_processor.waitlist import DISPATCH, FETCH_TASKS, FIRST_POLL_SECONDS, Waitlist
from worker.runs.bulkhead import exponential
from worker.runs.heartbeat import run_member
from worker.runs.keys import lock_key
from worker.runs.model import End, Step
from worker.runs.runs import Runs
from worker.services import Services

log = structlog.get_logger(__name__)

MAX_POLL_SECONDS = 5.0
"""For how long a poll resumes or fails runs; it must end well before its message is delivered again. The next
poll follows at once and goes on with the rest."""

MAX_DIAGNOSES_SECONDS = 1.0
"""For how long a poll sends diagnoses: that the pre-processor runs must not be seen late for it."""

BATCH_WAITERS = 100
"""Runs that are read, acted on and taken off the list at once. After a crash, so many are acted on again."""

MAX_NAMED_JOBS = 10
"""In the text with which monitors show a poll that has failed runs."""

BACKOFF_FACTOR = 1.5

MAX_RUNNING_AGE_SECONDS = 10.0
"""So long a poll believes the deployment that woke it. A message that was delayed may concern an application
that has been removed since."""


@dataclass(frozen=True)
class NextPoll:
    """The poll is to be published again, after `countdown` seconds."""

    countdown: float
    generation: int
    attempt: int


@dataclass(frozen=True)
class Polled:
    """What a poll has done: what follows it, if the polling is not over, and which runs it has failed."""

    following: NextPoll | None
    failure: str


@dataclass(frozen=True)
class Waiter:
    """A run that waits, and the queue and the priority of its steps."""

    job: str
    queue: str
    priority: int


def await_ready(
    waitlist: Waitlist, generation: int, attempt: int, services: Services, running_at: float = 0.0
) -> Polled:
    """Poll once, of a generation that is claimed and under the list's lock.

    `running_at`: when, by Redis's clock, a deployment registered the application that the runs wait for.
    """
    runs, member = services.runs, waitlist.name.member
    runs.heartbeats.schedule(member)
    countdown, failure = _poll_once(waitlist, services, attempt, running_at)
    # Removed before the end is written, because a run that joins after the end registers it anew.
    runs.heartbeats.remove(member)
    said, following = waitlist.end_poll(generation)
    if said == "ended":
        return Polled(None, failure)
    runs.heartbeats.schedule(member, countdown)
    return Polled(NextPoll(countdown, following, attempt + 1) if said == "again" else None, failure)


def _poll_once(waitlist: Waitlist, services: Services, attempt: int, running_at: float) -> tuple[float, str]:
    """Decide about the runs that wait and act on it.

    Returns the seconds until the next poll, and which runs this one has failed.

    It reads the earliest deadline and the runs that it acts on, never the whole list. What it does not finish
    within its time is left to the next poll, which follows at once.
    """
    runs, settings = services.runs, services.settings
    dispatch = waitlist.dispatch()
    if waitlist.earliest_deadline() is None:
        if dispatch is not None and dispatch.state is DispatchState.FAILED:
            waitlist.save_dispatch(dispatch, after_failure(dispatch))
        return 0.0, ""
    timeouts = Timeouts.of(settings.worker_pre_processor_timeout_seconds, runs.timing.visibility_timeout)
    decision, seen = Decision(DecisionKind.READY, dispatch), None
    if not (running_at and abs(waitlist.now() - running_at) <= MAX_RUNNING_AGE_SECONDS):
        decision, seen = _decide(waitlist, dispatch, services, timeouts, attempt)
    if dispatch is not None:
        waitlist.save_dispatch(dispatch, decision.dispatch)
    ends_at = time.monotonic() + min(MAX_POLL_SECONDS, runs.timing.visibility_timeout / 4)
    if decision.kind is DecisionKind.READY:
        resume(waitlist, runs, ends_at)
        return 0.0, ""
    if decision.kind is DecisionKind.FAILED:
        failure = fail(waitlist, decision.message, runs, ends_at)
        if decision.dispatch is not None and waitlist.earliest_deadline() is None:
            waitlist.save_dispatch(decision.dispatch, after_failure(decision.dispatch))
        return 0.0, failure
    now = waitlist.now()
    failure = fail(waitlist, TIMED_OUT, runs, ends_at, overdue_at=now)
    if decision.kind is DecisionKind.LOST:
        redispatch(waitlist, runs)
    if decision.dispatch is not None and seen is not None and decision.kind is DecisionKind.PENDING:
        send_diagnoses(waitlist, decision.dispatch, seen, services)
    waitlist.mark_polled(now)
    earliest = waitlist.earliest_deadline()
    moments = [earliest] if earliest is not None else []
    if decision.kind is DecisionKind.PENDING:
        due = lost_at(decision.dispatch, timeouts)
        moments += [due] if due is not None and due > now else []
    ceiling = min(settings.worker_pre_processor_poll_seconds, runs.timing.max_countdown)
    return max(0.0, min(poll_backoff(attempt, ceiling), min(moments, default=now) - now + 0.01)), failure


def _decide(
    waitlist: Waitlist, dispatch: Dispatch | None, services: Services, timeouts: Timeouts, attempt: int
) -> tuple[Decision, Observation | None]:
    """Observe and evaluate. After an unreadable answer the runs wait on: it must not end the polling."""
    try:
        seen = _observe(waitlist, dispatch, services, attempt)
        decision = evaluate(dispatch, seen, timeouts)
        if decision.kind is DecisionKind.FAILED and dispatch is not None:
            backend = services.backend(waitlist.name.tenant or None)
            decision = replace(decision, message=explained(decision.message, backend, dispatch.job))
        return decision, seen
    except INFRASTRUCTURE_ERRORS:
        raise
    except Exception as error:
        log.warning("poll failed", error_type=type(error).__name__, error=clean(str(error)))
        return Decision(DecisionKind.PENDING, dispatch), None


def _observe(waitlist: Waitlist, dispatch: Dispatch | None, services: Services, attempt: int) -> Observation:
    name = waitlist.name
    backend = services.backend(name.tenant or None)
    job = dispatch.job if dispatch else None
    # Without a job, what else there is decides whether one of the runs is to dispatch.
    records = (
        list_records(backend, name.target)
        if job is None
        else list_recent_records(backend, name.target, job, attempt)
    )
    # What becomes of the job does not matter any more once its application runs.
    status = None if classify_serve_app(records)[0] == "running" else job_status(backend, job)
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


def resume(waitlist: Waitlist, runs: Runs, ends_at: float) -> None:
    """Publish the next step of the runs that wait, batch by batch until `ends_at`.

    Where the queues are in the Redis of the runs, a batch leaves the list with its messages. Elsewhere it
    leaves after them, so a crash only repeats messages of one batch.
    """
    while waiting := _next_batch(waitlist, runs):
        runs.heartbeats.schedule_all([run_member(waiter.job) for waiter in waiting])
        published = []
        with runs.publisher.collecting() as messages:
            try:
                # The message that is published last is fetched first.
                for waiter in reversed(waiting):
                    _send(FETCH_TASKS, waiter, {}, runs)
                    published.append(waiter.job)
            finally:
                if published:
                    waitlist.resume(published, messages)
        if time.monotonic() > ends_at:
            return


def fail(waitlist: Waitlist, message: str, runs: Runs, ends_at: float, overdue_at: float = math.inf) -> str:
    """End the runs that wait FAILED with `message`, batch by batch until `ends_at`.

    `overdue_at`: only those whose deadline is not later. Returns the message with the jobs that it has ended.
    """
    ended: list[str] = []
    while waiting := _next_batch(waitlist, runs, overdue_at):
        jobs = [waiter.job for waiter in waiting]
        ended += runs.finish_all(jobs, End(JobStatus.FAILED, {"error": message}))
        waitlist.remove(*jobs)
        if time.monotonic() > ends_at:
            break
    more = f" and {len(ended) - MAX_NAMED_JOBS} more" if len(ended) > MAX_NAMED_JOBS else ""
    return f"{message} (job {', '.join(ended[:MAX_NAMED_JOBS])}{more})" if ended else ""


def send_diagnoses(waitlist: Waitlist, dispatch: Dispatch, seen: Observation, services: Services) -> None:
    """Send each run that waits for its second poll why its pre-processor does not run yet, once.

    The look for that is one for all of them, and there is none in a poll without such runs.
    """
    runs, timeout = services.runs, services.settings.worker_pre_processor_timeout_seconds
    diagnosis: Diagnosis | None = None
    ends_at = time.monotonic() + MAX_DIAGNOSES_SECONDS
    while due := waitlist.without_diagnosis(timeout, BATCH_WAITERS):
        diagnosis = diagnosis or diagnose(waitlist.name, dispatch, seen, services)
        waiting = [waiter.job for waiter in _waiting(list(due), waitlist, runs)]
        for job, language in runs.store.languages(waiting).items():
            runs.events.message(job, diagnosis.text(language), step=PROGRESS, in_log=False)
        waitlist.mark_diagnosed(max(due.values()))
        if time.monotonic() > ends_at:
            return


def _next_batch(waitlist: Waitlist, runs: Runs, overdue_at: float = math.inf) -> list[Waiter]:
    """The next runs that wait, those with the earliest deadlines; empty when there are none.

    Takes those off the list that have gone on, or that a worker has ended that left them on it.
    """
    while jobs := waitlist.waiters(BATCH_WAITERS, overdue_at):
        if waiting := _waiting(jobs, waitlist, runs):
            return waiting
    return []


def _waiting(jobs: Sequence[str], waitlist: Waitlist, runs: Runs) -> list[Waiter]:
    """Those of the runs that wait indeed; the others are taken off the list."""
    waiting, gone = [], []
    for job, standing in zip(jobs, runs.store.standings(jobs), strict=True):
        if standing and not standing.has_ended and standing.position <= DISPATCH.position:
            waiting.append(Waiter(job, standing.queue, standing.priority))
            continue
        if standing and standing.has_ended:
            runs.ensure_end_reported(job)  # the worker that wrote the end may have died before it sent it
        gone.append(job)
    waitlist.remove(*gone)
    return waiting


def redispatch(waitlist: Waitlist, runs: Runs) -> None:
    """Let the run with the latest deadline join again. However often this is sent, one run gets the claim."""
    while job := waitlist.latest():
        for waiter in _waiting([job], waitlist, runs):
            _send(DISPATCH, waiter, {"generation": runs.generations.newest(waiter.job, DISPATCH.name)}, runs)
            return


def _send(step: Step, waiter: Waiter, kwargs: dict[str, int], runs: Runs) -> None:
    queue = step.queue or waiter.queue
    runs.publisher.publish(step, queue, {"job": waiter.job, **kwargs}, priority=waiter.priority)
