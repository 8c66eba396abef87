"""The steps of a deployment, its plan, and what the steps store for each other in the run's record."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

from shared.messages import DeployMessage, JsonObject
from worker.actions.serve_state import forced_digest
from worker.blame import Owner, in_step
from worker.plugins import PluginCallError, PluginError
from worker.pre_processor.waitlist import Waitlist, WaitlistName
from worker.runs.model import Run, RunFailedError, Workflow
from worker.runs.state import stored_field
from worker.services import Services
from worker.workflow.intake import WorkflowState

PROGRESS_STEP = "deploy"
"""The platform's progress step for the gate, the submission and the wait."""


@dataclass(frozen=True)
class DeployPlan:
    """What the release's action plans to submit. Its JSON crosses to the plugin host and lies in Redis."""

    app_name: str
    route_prefix: str | None
    ray_actor_options: JsonObject
    serve_options: JsonObject
    digest: str
    """Over everything that makes a difference between two deployments."""
    other: JsonObject = field(default_factory=dict)
    """Keys that `plan()` adds for the gate and for `submit()`, an author's own as well."""

    @classmethod
    def from_json(cls, given: JsonObject) -> "DeployPlan":
        """Raises `KeyError` for a plan that lacks a key."""
        return cls(
            app_name=given["app_name"],
            route_prefix=given["route_prefix"],
            ray_actor_options=given["ray_actor_options"],
            serve_options=given["serve_options"],
            digest=given["digest"],
            other={key: value for key, value in given.items() if key not in cls.__dataclass_fields__},
        )

    @property
    def requests_at_once(self) -> int | None:
        """Requests that all replicas take at once; None where `plan()` does not say it."""
        found = self.other.get("requests_at_once")
        return found if type(found) is int and found >= 1 else None

    def forced_by(self, job: str) -> "DeployPlan":
        """The same with a digest of its own, so that an identical application on Serve is another one.

        It is the same for each delivery of the job's messages, which still submits once.
        """
        return replace(self, digest=forced_digest(self.digest, job))

    def to_json(self) -> JsonObject:
        """The inverse of `from_json`; older workers read it as well."""
        fields = asdict(self)
        return {**fields.pop("other"), **fields}


@dataclass(frozen=True)
class Submission:
    """Stored before the application is submitted: whether one of that name was there, and Redis's time."""

    existed: bool
    at: float


@dataclass(frozen=True)
class DeployState(WorkflowState):
    """What the steps of a deployment leave for each other."""

    plan: DeployPlan | None = stored_field(
        "plan", None, decode=DeployPlan.from_json, encode=DeployPlan.to_json
    )
    capacity: Literal["allowed", "skipped"] | None = None
    """The answer of the capacity gate; `skipped` where there is no agent to ask."""
    waits_since: float | None = None
    """Redis's time at which it came to wait for capacity."""
    reported_wait: tuple[int, bool] | None = stored_field("reported_wait", None, decode=tuple, encode=list)
    """What its last message said of that: the position, and whether with the agent's reasons."""
    submission: Submission | None = stored_field(
        "submission", None, decode=lambda stored: Submission(stored["existed"], stored["at"]), encode=asdict
    )
    submitted: bool = False
    submitted_at: float | None = None
    """Redis's time after the submission. A look that is to see it must be later."""
    failure: str | None = None
    """The message with which the run is about to fail."""
    superseded_since: float | None = stored_field("astray", None)
    """Redis's time at which the application was first found gone or replaced."""
    reported_reasons: tuple[str, ...] = stored_field("told", (), decode=tuple, encode=list)
    """Digests of Serve's reasons that became messages to the user."""
    registered: int | str | None = None
    """The id of the application record."""
    post_attempts: int = stored_field("register_attempts", 0)


DEPLOY = Workflow(DeployMessage, DeployState)
DeployRun: TypeAlias = Run[DeployMessage, DeployState]

INITIALIZE = DEPLOY.step("deploy.initialize", position=10)
CAPACITY_GATE = DEPLOY.step("deploy.capacity_gate", position=20)
SERVE_RUN = DEPLOY.step("deploy.serve_run", position=30)
AWAIT_RUNNING = DEPLOY.step("deploy.await_running", position=40)
REGISTER = DEPLOY.step("deploy.register", position=50)


def plan_of(run: DeployRun) -> DeployPlan:
    """The run's plan, which the capacity gate has stored."""
    if run.state.plan is None:
        raise RunFailedError(f"job {run.job} has no plan of its deployment")
    return run.state.plan


def waitlist_name(message: DeployMessage, services: Services) -> WaitlistName:
    """The waiting list of the runs that need what `message` deploys."""
    code, _, version = message.plugin.partition("@")
    tenant = message.tenant or services.settings.synapse_tenant or ""
    return WaitlistName(tenant, message.agent, code, version)


def extend_dispatch_deadline(message: DeployMessage, services: Services) -> None:
    """The message was read: a dispatch whose job is not known may be the one that led to it."""
    Waitlist(services.redis, waitlist_name(message, services)).extend_deadline()


def set_dispatched_job(run: DeployRun, services: Services) -> None:
    """The deployment has begun: it is the job of a dispatch whose dispatcher died before it knew the job."""
    Waitlist(services.redis, waitlist_name(run.message, services)).set_job(run.job)


def call_plugin(run: DeployRun, services: Services, operation: str, payload: JsonObject | None) -> Any:
    """The answer of the release's action to `operation`.

    Raises `RunFailedError` for what the author's code raises, and `PluginHostUnavailableError`.
    """
    try:
        release, request = services.action_of(run)
        return services.host.call(release, request, operation, payload)
    except PluginError as error:
        if in_step(error).owner is not Owner.RUN:
            raise
        if isinstance(error, PluginCallError) and error.trace:
            services.runs.events.message(run.job, error.trace, step=PROGRESS_STEP, level="error")
        failure = RunFailedError(f"Plugin {run.message.plugin} failed to {operation}: {error}")
    raise failure
