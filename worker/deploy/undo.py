"""Undo a deployment that failed or was stopped: remove what never ran, put back what was replaced."""

import structlog

from shared.messages import DeployMessage
from shared.statuses import JobStatus
from worker.deploy.cluster import Cluster
from worker.deploy.deployments import Ownership
from worker.deploy.plan import DEPLOY, PROGRESS_STEP, REGISTER, DeployPlan, DeployRun
from worker.plugins import PluginHostUnavailableError
from worker.runs.model import UnknownRunError
from worker.services import Services
from worker.workflow.texts import Text, in_language

log = structlog.get_logger(__name__)

LATE_SUBMISSION_SECONDS = 30.0
"""For so long after a stop Ray may carry out what it was asked to submit before."""


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
    if submission is None or run.state.submitted:
        return False
    ended_for = services.runs.store.seconds_since_end(run.job)
    is_recent = ended_for is not None and ended_for < LATE_SUBMISSION_SECONDS
    return is_recent and not cluster.state(plan.app_name).digests_of(plan.digest)


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
        # What has failed may be what a forced run has submitted.
        failed = next(iter(state.digests_of(plan.digest)), plan.digest)
        if not cluster.put_back(plan.app_name, failed):
            return ""
        log.info("application put back", app=plan.app_name)
        return in_language(run.message.language, Text.RUNS_AGAIN, app=plan.app_name)
    cluster.remove(plan.app_name)
    log.info("application removed that never ran", app=plan.app_name)
    return in_language(run.message.language, Text.NEVER_RAN, app=plan.app_name)
