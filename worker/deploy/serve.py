"""Submit the application to Ray Serve, wait until it runs, and undo the deployment if it does not."""

import hashlib
from dataclasses import replace

import structlog

from shared.messages import DeployMessage
from shared.statuses import JobStatus
from worker.deploy.cluster import Cluster, ServeState
from worker.deploy.deployments import Ownership
from worker.deploy.packages import DeployedPackages
from worker.deploy.plan import (
    AWAIT_RUNNING,
    DEPLOY,
    PROGRESS_STEP,
    REGISTER,
    DeployPlan,
    DeployRun,
    Submission,
    call_plugin,
    plan_of,
)
from worker.lua import redis_time
from worker.plugins import PluginHostUnavailableError
from worker.runs.model import Continue, Outcome, Reschedule, RunFailedError
from worker.runs.store import UnknownRunError
from worker.services import Services
from worker.workflow.texts import Text, in_language

log = structlog.get_logger(__name__)

FIRST_POLL_SECONDS = 0.3
MAX_POLL_SECONDS = 5.0
SUPERSEDED_SECONDS = 10.0
"""An application that is gone or replaced for so long stays away."""


LOCKED_SECONDS = 1.0
"""Delay of a step while another run submits or removes the same application."""

LATE_SUBMISSION_SECONDS = 30.0
"""For so long after a stop Ray may carry out what it was asked to submit before."""


def serve_run(run: DeployRun, services: Services, cluster: Cluster) -> Outcome:
    """Submit the application, unless an identical one is on Serve already, or this step has submitted it."""
    ownership = Ownership(services, plan_of(run).app_name)
    with ownership.locked() as is_locked:
        if not is_locked:
            return Reschedule(LOCKED_SECONDS)
        return _submit(run, services, cluster, ownership)


def _submit(run: DeployRun, services: Services, cluster: Cluster, ownership: Ownership) -> Outcome:
    plan, runs = plan_of(run), services.runs
    name = plan.app_name
    state = cluster.state(name)
    submission = run.state.submission
    is_identical = plan.digest in state.digests
    is_submitted = is_identical and run.state.submitted
    is_healthy = is_identical and state.bucket != "failed"
    # An application of another run that never ran is not kept should this run fail as well. On a second
    # delivery it may have run in the meantime.
    existed = state.exists and (state.bucket == "running" or ownership.existed_before())
    if submission is None:
        submission = Submission(existed=existed, at=redis_time(runs.redis))
        runs.store.update_state(run, replace(run.state, submission=submission))
    ownership.acquire(run.job, submission.existed or existed)
    ownership.note_content(plan.digest, services.checksum_of(run.message.plugin))
    if is_healthy and not is_submitted:
        text = in_language(run.message.language, Text.IDENTICAL, app=name)
        runs.events.message(run.job, text, step=PROGRESS_STEP)
    elif not is_submitted:
        try:
            answer = call_plugin(run, services, "submit", plan.to_json())
        except RunFailedError:
            undo_deployment(run, services, cluster)
            raise
        for message in answer.get("messages") or []:
            runs.events.message(run.job, str(message), step=PROGRESS_STEP)
        submitted_at = redis_time(runs.redis)
        runs.store.update_state(run, replace(run.state, submitted=True, submitted_at=submitted_at))
    DeployedPackages(services).add(name, run.message.plugin)
    runs.set_progress(run, PROGRESS_STEP, 30)
    return Continue(AWAIT_RUNNING)


def await_running(run: DeployRun, services: Services, cluster: Cluster) -> Outcome:
    """Look at the application once. Serve's reason for a failed attempt becomes a message to the user."""
    runs, name = services.runs, plan_of(run).app_name
    submission = run.state.submission or Submission(existed=True, at=redis_time(runs.redis))
    if run.state.failure is not None:  # an earlier delivery of this step died before it ended the run
        return _fail(run, services, cluster, run.state.failure)
    timeout = services.settings.worker_deploy_timeout_seconds
    now = redis_time(runs.redis)
    elapsed = now - submission.at
    # What Serve answered before the submission shows what was there before. An older worker stores no time.
    submitted_at = run.state.submitted_at or (now if run.state.submitted else submission.at)
    reason = ""
    try:
        state = cluster.state(name, max_age=now - submitted_at)
    except PluginHostUnavailableError as error:
        reason = str(error)
    else:
        reason = _report_reason(run, services, state)
        failure = _failure(run, services, state, reason)
        if failure is not None:
            return _fail(run, services, cluster, failure)
        if state.bucket == "running" and _is_own(run, services, state):
            Ownership(services, name).mark_ran()
            _store_route(run, services, state)
            runs.set_progress(run, PROGRESS_STEP, 100)
            return Continue(REGISTER)
    if elapsed > timeout:
        late = f"{name} did not run within {timeout:g} s"
        return _fail(run, services, cluster, _failure_text(late, reason))
    runs.set_progress(run, PROGRESS_STEP, 30 + 60 * elapsed / (elapsed + 30))
    return Reschedule(min(poll_countdown(elapsed), timeout - elapsed + 0.01, runs.timing.max_countdown))


def poll_countdown(elapsed: float) -> float:
    """Seconds until the next look: a tenth of the wait so far, within bounds.

    So long at most a deployment ends later than it could. All looks of a second share one answer of Serve's.
    """
    return max(FIRST_POLL_SECONDS, min(elapsed / 10, MAX_POLL_SECONDS))


def _store_route(run: DeployRun, services: Services, state: ServeState) -> None:
    """The plan has the route in force: an application that was there before has kept its own."""
    plan = plan_of(run)
    if state.route_prefix not in (None, plan.route_prefix):
        plan = replace(plan, route_prefix=state.route_prefix)
        services.runs.store.update_state(run, replace(run.state, plan=plan))


def undo_deployment(run: DeployRun, services: Services, cluster: Cluster) -> None:
    """Leave the application of a run that fails as it was before, under the application's lock.

    The run ends FAILED even if the cluster does not answer.
    """
    try:
        undone = _undo(run, services, cluster)
    except PluginHostUnavailableError as error:
        log.warning("deployment not undone", error=str(error))
        return
    if undone:
        services.runs.events.message(run.job, undone, step=PROGRESS_STEP)


def undo_after_stop(job: str, services: Services, cluster: Cluster) -> None:
    """Leave the application of a run that was stopped before it ran as it was before.

    Called for a step's message that arrives after the run's end. Raises `PluginHostUnavailableError`, for
    which the message is retried.
    """
    try:
        run = services.runs.store.load(job)
    except UnknownRunError:
        return
    is_stopped = run.end is not None and run.end.status is JobStatus.STOPPED
    if is_stopped and isinstance(run.message, DeployMessage) and run.position < REGISTER.position:
        stopped = DEPLOY.typed(run)
        if stopped.state.plan is None:
            return
        with Ownership(services, stopped.state.plan.app_name).locked() as is_locked:
            if not is_locked:
                raise PluginHostUnavailableError("another run deploys or removes the same application")
            if _may_still_arrive(stopped, stopped.state.plan, services, cluster):
                raise PluginHostUnavailableError("what was being submitted at the stop may still arrive")
            _undo(stopped, services, cluster)


def _may_still_arrive(run: DeployRun, plan: DeployPlan, services: Services, cluster: Cluster) -> bool:
    """Whether the run was stopped amid its submission, which Serve does not show and may show later.

    Ray cancels a call in its own time, so a look right after the end is too early.
    """
    submission = run.state.submission
    if submission is None or submission.existed or run.state.submitted:
        return False
    ended_for = services.runs.store.seconds_since_end(run.job)
    is_recent = ended_for is not None and ended_for < LATE_SUBMISSION_SECONDS
    return is_recent and not cluster.state(plan.app_name).exists


def _undo(run: DeployRun, services: Services, cluster: Cluster) -> str:
    """Remove the run's application if it never ran, else let it run again what the run has replaced.

    Called under the application's lock; safe to repeat. Nothing happens when the application runs, or another
    run waits for it as well. Returns what happened, as a message to the user.
    """
    plan = run.state.plan
    if plan is None:
        return ""
    ownership = Ownership(services, plan.app_name)
    if not ownership.release(run.job):
        return ""
    state = cluster.state(plan.app_name)
    if state.bucket == "running" or not state.has_digest(plan.digest):
        return ""
    if ownership.existed_before():
        if not cluster.put_back(plan.app_name, plan.digest):
            return ""
        log.info("application put back", app=plan.app_name)
        return f"{plan.app_name} runs again what it ran before."
    cluster.remove(plan.app_name)
    log.info("application removed that never ran", app=plan.app_name)
    return f"{plan.app_name} never ran; it was removed."


def _is_own(run: DeployRun, services: Services, state: ServeState) -> bool:
    """Whether it is the run's own, or has the same content.

    A waiting run may dispatch the release at the moment at which a user deploys it with other options.
    """
    plan = plan_of(run)
    if state.has_digest(plan.digest):
        return True
    return state.exists and Ownership(services, plan.app_name).has_content_of(plan.digest, state.digests)


def _failure(run: DeployRun, services: Services, state: ServeState, reason: str) -> str | None:
    """The message with which the run fails, or None."""
    name, runs = plan_of(run).app_name, services.runs
    if _is_own(run, services, state):
        runs.store.update_state(run, replace(run.state, superseded_since=None))
        return _failure_text(f"{name} reached {state.status}", reason) if state.bucket == "failed" else None
    if not state.is_serve_up:
        return None
    now, since = redis_time(runs.redis), run.state.superseded_since
    if since is None:
        runs.store.update_state(run, replace(run.state, superseded_since=now))
        return None
    if now - since <= SUPERSEDED_SECONDS:
        return None
    what = "was replaced by another deployment" if state.exists else "was removed"
    return _failure_text(f"{name} {what} while it started", "")


def _report_reason(run: DeployRun, services: Services, state: ServeState) -> str:
    """Serve's reason for the run's own application; each becomes a message to the user once."""
    if not state.reason or not _is_own(run, services, state):
        return ""
    digest = hashlib.sha256(state.reason.encode()).hexdigest()[:16]
    reported = run.state.reported_reasons
    if digest not in reported:
        services.runs.events.message(run.job, state.reason, step=PROGRESS_STEP, level="warning")
        reported = (*reported, digest)[-50:]
        services.runs.store.update_state(run, replace(run.state, reported_reasons=reported))
    return state.reason


def _fail(run: DeployRun, services: Services, cluster: Cluster, failure: str) -> Outcome:
    services.runs.store.update_state(run, replace(run.state, failure=failure))
    with Ownership(services, plan_of(run).app_name).locked() as is_locked:
        if not is_locked:
            return Reschedule(LOCKED_SECONDS)
        undo_deployment(run, services, cluster)
    raise RunFailedError(failure)


def _failure_text(what: str, reason: str) -> str:
    return f"Serve application {what}: {reason}" if reason else f"Serve application {what}"
