"""The steps of a run whose action runs whole: submit its Ray job, follow it, take its result over."""

import hashlib
import re
from dataclasses import dataclass, replace
from typing import TypeAlias

import structlog

from shared.channels import redis_prefix
from shared.messages import DeployMessage, TailLogsMessage
from shared.statuses import JobStatus
from worker.lua import redis_time
from worker.plugins import PluginCallError, PluginHostUnavailableError
from worker.plugins.requests import Runner
from worker.runs.events import MESSAGE_HEADROOM_ENTRIES, subscribe_log
from worker.runs.model import (
    Continue,
    Finish,
    Outcome,
    Reschedule,
    Run,
    RunFailedError,
    RunMessage,
    UnknownRunError,
    Workflow,
)
from worker.services import Services
from worker.whole_run.job_output import error_in
from worker.whole_run.ray_jobs import Jobs, JobState
from worker.workflow.intake import WorkflowState
from worker.workflow.texts import Text, in_language

log = structlog.get_logger(__name__)

FIRST_POLL_SECONDS = 0.5
MAX_POLL_SECONDS = 5.0
LOST_SECONDS = 30.0
"""A job that Ray has not known for so long is lost, as with a cluster that was started anew."""
LATE_SUBMISSION_SECONDS = 30.0
"""For so long after a stop Ray may still take a job that was being submitted."""
ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


@dataclass(frozen=True)
class WholeRunState(WorkflowState):
    """What the steps leave for each other."""

    ray_job: str | None = None
    """The id of the Ray job, stored before it is submitted."""
    ray_job_at: float | None = None
    """Redis's time then."""
    ray_job_submitted: bool = False
    ray_job_missing_since: float | None = None
    """Redis's time at which Ray was first found not to know the job."""


WHOLE_RUN: Workflow[RunMessage, WholeRunState] = Workflow(RunMessage, WholeRunState)
WholeRun: TypeAlias = Run[RunMessage, WholeRunState]

# Beyond all steps of the workflows that lead to them.
SUBMIT = WHOLE_RUN.step("whole_run.submit", position=80)
AWAIT_END = WHOLE_RUN.step("whole_run.await_end", position=90)


def ray_job_id(job: str, services: Services) -> str:
    """The id of a run's Ray job, always the same: a second submission is that of the same job.

    Other installations may use the same cluster, whose backends have jobs of the same numbers.
    """
    settings = services.settings
    owner = "\n".join((settings.synapse_host, settings.synapse_tenant or "", redis_prefix(), job))
    digest = hashlib.sha256(owner.encode()).hexdigest()[:16]
    return f"synapse-{re.sub('[^A-Za-z0-9_-]', '-', job)[:60]}-{digest}"


def submit(run: WholeRun, services: Services, jobs: Jobs) -> Outcome:
    """Submit the Ray job, and have its log relayed to the run's."""
    if services.settings.ray_address is None:
        raise RunFailedError(
            "This action runs whole, as a Ray job, and this worker has no Ray cluster: set RAY_ADDRESS to the"
            " cluster's head, host:port"
        )
    runs, state = services.runs, run.state
    whole_run = state.whole_run or {}
    if state.ray_job is None:
        id = ray_job_id(run.job, services)
        state = replace(state, ray_job=id, ray_job_at=redis_time(runs.redis))
        runs.store.update_state(run, state)
    else:
        id = state.ray_job
    release, request = services.action_of(run)
    failure = ""
    try:
        jobs.submit(id, release, request, by_sdk=whole_run.get("runner") == Runner.SDK)
    except PluginCallError as error:
        failure = f"Plugin {run.message.plugin} cannot run: {error.message}"
    if failure:
        raise RunFailedError(failure)
    if not run.state.ray_job_submitted:
        methods = ", ".join(f"{name}()" for name in whole_run.get("methods") or [])
        kind = Text.RUNS_WHOLE_FOR if methods else Text.RUNS_WHOLE
        runs.events.message(run.job, in_language(run.message.language, kind, methods=methods, id=id))
        runs.store.update_state(replace(run, state=state), replace(state, ray_job_submitted=True))
    history_entries = services.settings.worker_stream_max_lines + MESSAGE_HEADROOM_ENTRIES
    agent = services.settings.worker_agent or _agent_of(run.message)
    subscribe_log(runs.redis, TailLogsMessage(job=run.job, ray_job=id, agent=agent), history_entries)
    return Continue(AWAIT_END)


def await_end(run: WholeRun, services: Services, jobs: Jobs) -> Outcome:
    """Look at the Ray job once; when it has ended, take over its result or the author's error."""
    id, runs = _ray_job_of(run), services.runs
    job = jobs.state(id)
    now = redis_time(runs.redis)
    elapsed = now - (run.state.ray_job_at or now)
    if job is None:
        return _look_again_for_lost(run, services, now)
    if run.state.ray_job_missing_since is not None:
        runs.store.update_state(run, replace(run.state, ray_job_missing_since=None))
    if job.status in ENDED:
        return _end(run, job, services, jobs)
    if job.status == "PENDING" and elapsed > services.settings.worker_deploy_timeout_seconds:
        jobs.stop(id)
        waited = f"{services.settings.worker_deploy_timeout_seconds:g} s"
        raise RunFailedError(f"Its Ray job has not begun within {waited}: {error_in(job.message)}")
    return Reschedule(min(poll_countdown(elapsed), runs.timing.max_countdown))


def poll_countdown(elapsed: float) -> float:
    """Seconds until the next look: a tenth of the wait so far, within bounds. A stop does not wait for it."""
    return max(FIRST_POLL_SECONDS, min(elapsed / 10, MAX_POLL_SECONDS))


def stop_after_end(job: str, services: Services, jobs: Jobs) -> None:
    """Stop the Ray job of a run that has ended; called for a step's message that arrives after that.

    Raises `PluginHostUnavailableError`, for which the message is retried.
    """
    try:
        run = services.runs.store.load(job)
    except UnknownRunError:
        return
    state = WHOLE_RUN.typed(run).state
    if state.ray_job is None:
        return
    found = jobs.state(state.ray_job)
    if found is None:
        ended_for = services.runs.store.seconds_since_end(job)
        is_recent = ended_for is not None and ended_for < LATE_SUBMISSION_SECONDS
        if is_recent and not state.ray_job_submitted:
            raise PluginHostUnavailableError("what was being submitted at the stop may still arrive")
    elif found.status not in ENDED and jobs.stop(state.ray_job):
        log.info("ray job stopped", job=job, ray_job=state.ray_job)


def _end(run: WholeRun, job: JobState, services: Services, jobs: Jobs) -> Outcome:
    if job.status == "STOPPED":
        return Finish(JobStatus.STOPPED, {"error": "stopped"})
    output = jobs.output(_ray_job_of(run))
    if output.said is not None:
        services.runs.add_plugin_output(run.job, output.said, in_log=False)
    plugin = run.message.plugin
    if job.status == "FAILED":
        # A job that never began has no log, and Ray says why.
        raise RunFailedError(f"Plugin {plugin} failed: {output.error or error_in(job.message)}")
    if output.result is None:
        raise RunFailedError(f"Plugin {plugin} ended without a result to take over: {output.problem}")
    return Finish(JobStatus.SUCCEEDED, output.result)


def _look_again_for_lost(run: WholeRun, services: Services, now: float) -> Outcome:
    """A head that has just been started anew may show its jobs late."""
    since = run.state.ray_job_missing_since
    if since is None:
        services.runs.store.update_state(run, replace(run.state, ray_job_missing_since=now))
    elif now - since > LOST_SECONDS:
        raise RunFailedError(f"The Ray cluster does not know job {run.state.ray_job} any more")
    return Reschedule(1.0)


def _ray_job_of(run: WholeRun) -> str:
    if run.state.ray_job is None:
        raise RunFailedError(f"job {run.job} has no Ray job")
    return run.state.ray_job


def _agent_of(message: RunMessage) -> int:
    return message.agent if isinstance(message, DeployMessage) else message.params.agent
