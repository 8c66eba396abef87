"""Take away what a run brought and what never ran."""

import structlog

from shared.messages import DeployMessage
from shared.statuses import JobStatus
from worker.deploy.cluster import Cluster
from worker.deploy.findings import PLAN, plan_of
from worker.deploy.ownership import Ownership
from worker.deploy.steps import PROGRESS, REGISTER
from worker.plugins import PluginHostUnavailableError
from worker.runs.model import Run
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


def clean_after_end(job: str, services: Services, cluster: Cluster) -> None:
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
    if not owner.let_go(run.job) or owner.existed_before():
        return False
    state = cluster.state(name)
    if state.bucket == "running" or not state.is_of(plan["digest"]):
        return False
    cluster.remove(name)
    log.info("application removed that never ran", app=name)
    return True
