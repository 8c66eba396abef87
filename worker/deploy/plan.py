"""The steps of a deployment, its plan, and what the steps store for each other in the run's record."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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

PROGRESS_STEP = "deploy"
"""The platform's progress step for the gate, the submission and the wait."""

PLAN = "plan"
CAPACITY = "capacity"
SUBMISSION = "submission"


@dataclass(frozen=True)
class DeployPlan:
    """What the release's action plans to submit. Its JSON crosses to the plugin host and lies in Redis."""

    app_name: str
    route_prefix: str | None
    ray_actor_options: Mapping[str, Any]
    serve_options: Mapping[str, Any]
    digest: str
    """Over everything that makes a difference between two deployments."""
    other: Mapping[str, Any] = field(default_factory=dict)
    """Keys that an author's own `plan()` adds for its own `submit()`."""

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "DeployPlan":
        """Raises `KeyError` for a plan that lacks a key."""
        return cls(
            app_name=given["app_name"],
            route_prefix=given["route_prefix"],
            ray_actor_options=given["ray_actor_options"],
            serve_options=given["serve_options"],
            digest=given["digest"],
            other={key: value for key, value in given.items() if key not in cls.__dataclass_fields__},
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`; older workers read it as well."""
        fields = asdict(self)
        return {**fields.pop("other"), **fields}


@dataclass(frozen=True)
class Submission:
    """Stored before the application is submitted: whether one of that name was there, and Redis's time."""

    existed: bool
    at: float

    def note(self, run: Run, runs: Runs) -> None:
        """Store it in the run's record."""
        runs.store.note(run.job, SUBMISSION, asdict(self))


def plan_of(run: Run) -> DeployPlan:
    """The run's plan, which the capacity gate has stored."""
    return DeployPlan.from_json(run.findings[PLAN])


def submission_of(run: Run) -> Submission | None:
    """The run's submission; None before it."""
    found = run.findings.get(SUBMISSION)
    return Submission(**found) if found else None


def deploy_message(run: Run) -> DeployMessage:
    """The run's message; raises `TypeError` for a run that is no deployment."""
    if not isinstance(run.message, DeployMessage):
        raise TypeError(f"{run.message.task} is no deployment")
    return run.message


def waitlist_name(message: DeployMessage, services: Services) -> WaitlistName:
    """The waiting list of the runs that need what `message` deploys."""
    code, _, version = message.plugin.partition("@")
    return WaitlistName(
        message.tenant or services.settings.synapse_tenant or "", message.agent, code, version
    )


def extend_dispatch_deadline(message: DeployMessage, services: Services) -> None:
    """The message was read: a dispatch whose job is not known may be the one that led to it."""
    Waitlist(services.redis, waitlist_name(message, services)).extend_deadline()


def set_dispatched_job(run: Run, services: Services) -> None:
    """The deployment has begun: it is the job of a dispatch whose dispatcher died before it knew the job."""
    Waitlist(services.redis, waitlist_name(deploy_message(run), services)).set_job(run.job)


def call_plugin(run: Run, services: Services, operation: str, payload: Mapping[str, Any] | None) -> Any:
    """The answer of the release's action to `operation`.

    Raises `RunFailedError` for what the author's code raises, and `PluginHostUnavailableError`.
    """
    try:
        release, request = services.action_of(run)
        return services.host.call(release, request, operation, payload)
    except PluginHostUnavailableError:
        raise
    except PluginError as error:
        if isinstance(error, PluginCallError) and error.trace:
            services.runs.events.message(run.job, error.trace, step=PROGRESS_STEP, level="error")
        failure = RunFailedError(f"Plugin {run.message.plugin} failed to {operation}: {error}")
    raise failure
