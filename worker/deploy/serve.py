"""Hand the application to Serve, wait until it runs, and remove what never ran."""

import hashlib
from typing import NoReturn

import structlog

from shared.messages import DeployMessage
from shared.statuses import JobStatus
from worker.deploy.cluster import Cluster, ServeState
from worker.deploy.deployments import DeployedPackages, Ownership
from worker.deploy.plan import (
    AWAIT_RUNNING,
    PLAN,
    PROGRESS,
    REGISTER,
    Submission,
    call,
    plan_of,
    redis_now,
    submission_of,
)
from worker.plugins import PluginHostUnavailableError
from worker.runs.model import Continue, Outcome, Reschedule, Run, RunFailedError
from worker.runs.store import UnknownRunError
from worker.services import Services

log = structlog.get_logger(__name__)


def remove_if_never_ran(run: Run, services: Services, cluster: Cluster) -> None:
    """Before a run ends FAILED. A cluster that does not answer keeps what it has: the end comes first."""
    try:
        removed = _remove(run, services, cluster)
    except PluginHostUnavailableError as error:
        log.warning("application not removed", error=str(error))
        return
    if removed:
        text = f"{plan_of(run)['app_name']} never ran; it was removed."
        services.runs.events.message(run.job, text, step=PROGRESS)


def clean_up_after_end(job: str, services: Services, cluster: Cluster) -> None:
    """A step's message came after the run's end: what a stopped run left half-started is removed.

    Raises `PluginHostUnavailableError`; the message then comes back.
    """
    try:
        run = services.runs.store.load(job)
    except UnknownRunError:
        return
    stopped = run.end is not None and run.end.status is JobStatus.STOPPED
    if stopped and isinstance(run.message, DeployMessage) and run.position < REGISTER.position:
        _remove(run, services, cluster)


def _remove(run: Run, services: Services, cluster: Cluster) -> bool:
    """Remove the run's application, unless it was there before, has run, or another run waits for it as well.

    Safe to repeat.
    """
    if PLAN not in run.findings:
        return False
    plan = plan_of(run)
    name = plan["app_name"]
    owner = Ownership(services, name)
    if not owner.release(run.job) or owner.existed_before():
        return False
    state = cluster.state(name)
    if state.bucket == "running" or not state.is_of(plan["digest"]):
        return False
    cluster.remove(name)
    log.info("application removed that never ran", app=name)
    return True


SUBMITTED = "submitted"


def serve_run(run: Run, services: Services, cluster: Cluster) -> Outcome:
    """Submit, unless exactly this is there already: put there before, or by this step's first delivery."""
    plan, runs = plan_of(run), services.runs
    name = plan["app_name"]
    state = cluster.state(name)
    owner = Ownership(services, name)
    submission = submission_of(run)
    same = plan["digest"] in state.digests
    submitted = same and SUBMITTED in run.findings
    here = same and state.bucket != "failed"
    # Another run's deployment that never ran is no reason to keep it should this run fail as well. It may
    # have run by the time of a second delivery.
    existed = state.exists and (state.bucket == "running" or owner.existed_before())
    if submission is None:
        submission = Submission(existed=existed, at=redis_now(runs))
        submission.note(run, runs)
    owner.acquire(run.job, submission.existed or existed)
    if here and not submitted:
        runs.events.message(run.job, f"{name} is there already: nothing to submit.", step=PROGRESS)
    elif not submitted:
        try:
            answer = call(run, services, "submit", plan)
        except RunFailedError:
            remove_if_never_ran(run, services, cluster)
            raise
        for message in answer.get("messages") or []:
            runs.events.message(run.job, str(message), step=PROGRESS)
        runs.store.note(run.job, SUBMITTED, True)
    DeployedPackages(services).add(name, run.message.plugin)
    runs.set_progress(run, PROGRESS, 30)
    return Continue(AWAIT_RUNNING)


FIRST_SECONDS = 0.3
LONGEST_SECONDS = 5.0
SUPERSEDED_SECONDS = 10.0
"""An application that is gone, or is another one, for so long does not come back."""

FAILURE = "failure"
SUPERSEDED_SINCE = "astray"
REPORTED_REASONS = "told"


def await_running(run: Run, services: Services, cluster: Cluster) -> Outcome:
    """One look at Serve. Its explanation goes into the run's messages from the first failed attempt on."""
    runs, name = services.runs, plan_of(run)["app_name"]
    submission = submission_of(run) or Submission(existed=True, at=redis_now(runs))
    if FAILURE in run.findings:  # this step died between saying so and ending the run
        _fail(run, services, cluster, run.findings[FAILURE])
    timeout = services.settings.worker_deploy_timeout_seconds
    elapsed = redis_now(runs) - submission.at
    reason = ""
    try:
        state = cluster.state(name)
    except PluginHostUnavailableError as error:
        reason = str(error)
    else:
        reason = _report_reason(run, services, state)
        failure = _failure(run, services, state, reason)
        if failure is not None:
            _fail(run, services, cluster, failure)
        if state.bucket == "running" and _is_ours(run, state):
            Ownership(services, name).mark_ran()
            runs.set_progress(run, PROGRESS, 100)
            return Continue(REGISTER)
    if elapsed > timeout:
        _fail(run, services, cluster, _sentence(f"{name} did not run within {timeout:g} s", reason))
    runs.set_progress(run, PROGRESS, 30 + 60 * elapsed / (elapsed + 30))
    return Reschedule(min(countdown(elapsed), timeout - elapsed + 0.01, runs.timing.max_countdown))


def countdown(elapsed: float) -> float:
    """Seconds until the next look: a quarter of the wait so far, within bounds."""
    return max(FIRST_SECONDS, min(elapsed / 4, LONGEST_SECONDS))


def _is_ours(run: Run, state: ServeState) -> bool:
    return state.is_of(plan_of(run)["digest"])


def _failure(run: Run, services: Services, state: ServeState, reason: str) -> str | None:
    """What ends the run, or None."""
    name, runs = plan_of(run)["app_name"], services.runs
    if _is_ours(run, state):
        if run.findings.get(SUPERSEDED_SINCE) is not None:
            runs.store.note(run.job, SUPERSEDED_SINCE, None)
        return _sentence(f"{name} reached {state.status}", reason) if state.bucket == "failed" else None
    now, since = redis_now(runs), run.findings.get(SUPERSEDED_SINCE)
    if since is None:
        runs.store.note(run.job, SUPERSEDED_SINCE, now)
        return None
    if now - since <= SUPERSEDED_SECONDS:
        return None
    what = "was replaced by another deployment" if state.exists else "was removed"
    return _sentence(f"{name} {what} while it started", "")


def _report_reason(run: Run, services: Services, state: ServeState) -> str:
    """Serve's explanation of what is ours; said once in the run's messages."""
    if not state.reason or not _is_ours(run, state):
        return ""
    digest = hashlib.sha256(state.reason.encode()).hexdigest()[:16]
    told: list[str] = run.findings.get(REPORTED_REASONS, [])
    if digest not in told:
        services.runs.events.message(run.job, state.reason, step=PROGRESS, level="warning")
        services.runs.store.note(run.job, REPORTED_REASONS, [*told, digest][-50:])
    return state.reason


def _fail(run: Run, services: Services, cluster: Cluster, failure: str) -> NoReturn:
    services.runs.store.note(run.job, FAILURE, failure)
    remove_if_never_ran(run, services, cluster)
    raise RunFailedError(failure)


def _sentence(what: str, reason: str) -> str:
    return f"Serve application {what}: {reason}" if reason else f"Serve application {what}"
