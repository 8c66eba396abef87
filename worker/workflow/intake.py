"""How a message becomes a run: its record, its first step, and whether its job is still to be done."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from shared.messages import DeployMessage, JsonObject, ToTaskMessage
from shared.statuses import JobStatus
from worker import metrics, tracing
from worker.platform import NotFoundError
from worker.runs.heartbeat import run_member
from worker.runs.model import Acceptance, End, Run, RunMessage, Step
from worker.runs.runs import Runs
from worker.runs.state import RunState
from worker.services import Services
from worker.workflow.dead_letters import DeadLetters
from worker.workflow.texts import Text, in_language
from worker.workflow.validation import status_of

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class WorkflowState(RunState):
    """What the runs of all workflows keep."""

    reopened: bool = False
    """The backend's FAILED came from the rejection of an earlier message of this job."""
    whole_run: JsonObject | None = None
    """How the action runs whole: whose program runs it (`runner`), for which `methods` of the author."""


def accept_message(
    message: DeployMessage | ToTaskMessage,
    first: Step,
    routing_key: object,
    runs: Runs,
    priority: int,
    on_accepted: Callable[[DeployMessage | ToTaskMessage], None],
) -> None:
    """Create the run of a message, once, and publish its first step until the run has begun it.

    `routing_key` is where the message came in, with its `priority`; `on_accepted` is called before the first
    step is published.
    """
    traceparent = tracing.carried_context(message.job)
    acceptance = runs.store.accept(message, _run_queue(message, routing_key), priority, traceparent)
    if acceptance is not Acceptance.KNOWN:
        metrics.count_accepted(message.action)
    if acceptance is Acceptance.STOPPED:
        runs.ensure_end_reported(message.job)
        return
    # A second delivery may follow a worker that died right here, so the first step is published again until
    # the run has begun it. Another message of the same job may be of the other kind, with other steps.
    run = runs.store.load(message.job)
    if run.end is not None:
        runs.ensure_end_reported(message.job)
    elif run.position < first.position and run.message.task == message.task:
        on_accepted(run.message)
        runs.heartbeats.schedule(run_member(message.job))
        runs.publisher.publish(first, run.queue, {"job": message.job}, priority=run.priority)
    log.info("message accepted", job=message.job, plugin=message.plugin, acceptance=acceptance)


def begin_run(run: Run[RunMessage, WorkflowState], services: Services) -> bool:
    """The common part of every first step; False when the job has ended at the backend, so nothing starts.

    A job that is FAILED only because a message of it was rejected is opened again when that one is replayed.
    """
    runs = services.runs
    try:
        status = status_of(services.backend(run.message.tenant).get_job(run.job))
    except NotFoundError:
        text = in_language(run.message.language, Text.UNKNOWN_JOB)
        runs.events.message(run.job, text, level="warning")
        status = None
    if status is not None and status.is_final and not _may_reopen(run, status, services):
        log.info("job has ended already", status=status)
        # Marked reported first, because the end is the backend's own and must never be reported to it.
        runs.store.mark_reported(run.job)
        runs.store.finish(run.job, End(status, {}))
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


def _run_queue(message: DeployMessage | ToTaskMessage, routing_key: object) -> str:
    """The queue of the run's steps: where its message came from, if that is one of the contract's queues.

    The publisher chooses the routing key, and the steps of a run must not go where no worker listens.
    """
    is_of_agent = isinstance(routing_key, str) and re.fullmatch(
        rf"{message.queue}\.[1-9][0-9]*", routing_key, re.ASCII
    )
    return str(routing_key) if is_of_agent else message.queue
