"""Submit the application to Ray Serve, and wait until it runs."""

import hashlib
from dataclasses import replace

import structlog

from worker.deploy.cluster import Cluster, ServeState
from worker.deploy.deployments import Ownership
from worker.deploy.packages import DeployedPackages
from worker.deploy.plan import (
    AWAIT_RUNNING,
    PROGRESS_STEP,
    REGISTER,
    DeployRun,
    Submission,
    call_plugin,
    plan_of,
)
from worker.deploy.undo import undo_deployment
from worker.lua import redis_time
from worker.plugins import PluginHostUnavailableError
from worker.runs.model import Continue, Outcome, Reschedule, RunFailedError
from worker.services import Services
from worker.workflow.texts import Text, in_language

log = structlog.get_logger(__name__)

FIRST_POLL_SECONDS = 0.3
MAX_POLL_SECONDS = 5.0
SUPERSEDED_SECONDS = 10.0
"""An application that is gone or replaced for so long stays away."""


LOCKED_SECONDS = 1.0
"""Delay of a step while another run submits or removes the same application."""


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
    identical = state.digests_of(plan.digest)
    is_identical = bool(identical)
    is_submitted = is_identical and run.state.submitted
    is_healthy = is_identical and state.bucket != "failed"
    # An application of another run that never ran is not kept should this run fail as well. On a second
    # delivery it may have run in the meantime.
    existed = state.exists and (state.bucket == "running" or ownership.existed_before())
    if submission is None:
        submission = Submission(existed=existed, at=redis_time(runs.redis))
        runs.store.update_state(run, replace(run.state, submission=submission))
    ownership.acquire(run.job, submission.existed or existed)
    # A worker of an older release knows what a forced run has submitted only by what is noted of it.
    for digest in {plan.digest, *identical}:
        ownership.note_content(digest, services.checksum_of(run.message.plugin))
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
