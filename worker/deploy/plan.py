"""The steps of a deployment, and what they leave for each other in the run's record."""

from dataclasses import asdict, dataclass
from typing import Any

from shared.messages import DeployMessage
from worker.plugins import PluginCallError, PluginError, PluginHostUnavailableError
from worker.pre_processor.waitlist import Waitlist, WaitlistName
from worker.runs.model import Run, RunFailedError, Step
from worker.runs.runs import Runs
from worker.services import Services

INITIALIZE = Step("deploy.initialize", position=10)
CAPACITY_GATE = Step("deploy.capacity_gate", position=20)
SERVE_RUN = Step("deploy.serve_run", position=30)
AWAIT_RUNNING = Step("deploy.await_running", position=40)
REGISTER = Step("deploy.register", position=50)

PROGRESS = "deploy"
"""The platform's progress step that gate, submission and wait belong to."""


PLAN = "plan"
CAPACITY = "capacity"
SUBMISSION = "submission"


@dataclass(frozen=True)
class Submission:
    """Written down before Serve is told: whether there was an application of that name, and the time."""

    existed: bool
    at: float

    def note(self, run: Run, runs: Runs) -> None:
        """Keep it."""
        runs.store.note(run.job, SUBMISSION, asdict(self))


def plan_of(run: Run) -> dict[str, Any]:
    """What the author's action planned: `app_name`, `route_prefix`, options, `digest`."""
    plan: dict[str, Any] = run.findings[PLAN]
    return plan


def submission_of(run: Run) -> Submission | None:
    """The submission, once there was one."""
    found = run.findings.get(SUBMISSION)
    return Submission(**found) if found else None


def redis_now(runs: Runs) -> float:
    """Redis's clock, in seconds."""
    seconds, microseconds = runs.redis.time()
    return float(seconds + microseconds / 1e6)


def deploy_message(run: Run) -> DeployMessage:
    """The run's message, which is a deployment's."""
    if not isinstance(run.message, DeployMessage):
        raise TypeError(f"{run.message.task} is no deployment")
    return run.message


def waitlist_of(message: DeployMessage, services: Services) -> WaitlistName:
    """Where runs wait for what `message` deploys."""
    code, _, version = message.plugin.partition("@")
    return WaitlistName(
        message.tenant or services.settings.synapse_tenant or "", message.agent, code, version
    )


def extend_dispatch_deadline(message: DeployMessage, services: Services) -> None:
    """The message was read, which says no more than that something may have come of a dispatch."""
    Waitlist(services.redis, waitlist_of(message, services)).extend_deadline()


def set_dispatched_job(run: Run, services: Services) -> None:
    """The deployment has begun: a dispatch whose dispatcher died before it knew the job is not lost."""
    Waitlist(services.redis, waitlist_of(deploy_message(run), services)).set_job(run.job)


def call(run: Run, services: Services, operation: str, payload: Any) -> Any:
    """What the author's code answers; what it raises ends the run, a host that is away does not."""
    try:
        release, request = services.action_of(run)
        return services.host.call(release, request, operation, payload)
    except PluginHostUnavailableError:
        raise
    except PluginError as error:
        if isinstance(error, PluginCallError) and error.trace:
            services.runs.events.message(run.job, error.trace, step="deploy", level="error")
        failure = RunFailedError(f"Plugin {run.message.plugin} failed to {operation}: {error}")
    raise failure
