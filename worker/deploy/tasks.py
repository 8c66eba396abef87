"""The Celery tasks of a deployment: its entry task, and a task for each step."""

from typing import Any, TypeAlias

from celery import shared_task

import worker.deploy.register
from shared.messages import DeployMessage, Job, JsonObject, ToTaskMessage
from worker.blame import INFRASTRUCTURE_ERRORS
from worker.deploy import gate, serve
from worker.deploy.cluster import RayCluster
from worker.deploy.plan import (
    AWAIT_RUNNING,
    CAPACITY_GATE,
    INITIALIZE,
    REGISTER,
    SERVE_RUN,
    DeployRun,
    DeployState,
    extend_dispatch_deadline,
)
from worker.deploy.undo import undo_after_stop
from worker.per_process import once_per_process
from worker.plugins import PluginHostUnavailableError
from worker.runs.bulkhead import bulkhead, release_share
from worker.runs.model import Outcome, WorkflowStep
from worker.runs.publisher import send_task
from worker.services import services
from worker.workflow.agent_task import CLUSTER, AgentTask
from worker.workflow.delivery import INFRASTRUCTURE_RETRY_SECONDS
from worker.workflow.task import StepFunction

DeployStep: TypeAlias = WorkflowStep[DeployMessage, DeployState]

CLUSTER_STEPS = (CAPACITY_GATE, SERVE_RUN, AWAIT_RUNNING)
PLUGIN_STEPS = (CAPACITY_GATE, SERVE_RUN)
"""Those that call code of the release, and also need a slot of its share."""


class DeployTask(AgentTask):
    """A step of a deployment, which runs on a worker of the message's agent."""

    abstract = True

    def run_on_agent_worker(
        self, step: DeployStep, job: str, function: StepFunction[DeployMessage, DeployState]
    ) -> None:
        """Run the step, or send its message to the workers of the run's agent."""

        def in_bulkhead(run: DeployRun) -> Outcome:
            return bulkhead.run(CLUSTER, self.request.retries, lambda: in_release_share(run))

        def in_release_share(run: DeployRun) -> Outcome:
            if step not in PLUGIN_STEPS:
                return function(run)
            share = release_share(run.message.plugin)
            return bulkhead.run(share, self.request.retries, lambda: function(run))

        if not self.sent_to_other_worker(step, job):
            self.run_step(step, job, in_bulkhead if step in CLUSTER_STEPS else function)

    def forward(self, args: tuple[Any, ...], kwargs: JsonObject, agent: int) -> None:
        """Send the deployment's message to the workers of its agent, unchanged."""
        try:
            with self.traced():
                send_task(self.app, self.name, DeployMessage.agent_queue(agent), kwargs, args=args)
        except INFRASTRUCTURE_ERRORS:
            self.retry_later(INFRASTRUCTURE_RETRY_SECONDS)

    def on_accepted(self, message: DeployMessage | ToTaskMessage) -> None:
        """Let the waiting list of what it deploys wait for it."""
        if isinstance(message, DeployMessage):
            extend_dispatch_deadline(message, services())

    def on_message_after_end(self, job: str) -> None:
        """Remove what a stopped run has left half-started."""
        with bulkhead.acquire(CLUSTER) as acquired:
            if not acquired:
                raise PluginHostUnavailableError("other deployments hold the slots of this worker's bulkhead")
            undo_after_stop(job, services(), _cluster())


@once_per_process
def _cluster() -> RayCluster:
    return RayCluster(services().ray)


@shared_task(base=DeployTask, bind=True, name=DeployMessage.task)
def deploy(self: DeployTask, /, *args: Any, **kwargs: Any) -> None:
    """The entry task: accept the message, or forward it to the workers of its agent."""
    own, agent = services().settings.worker_agent, kwargs.get("agent")
    if own is not None and type(agent) is int and agent > 0 and agent != own:
        self.forward(args, kwargs, agent)
    else:
        self.accept(DeployMessage, INITIALIZE, args, kwargs)


@shared_task(base=DeployTask, bind=True, name=INITIALIZE.name)
def initialize(self: DeployTask, job: Job, **_: Any) -> None:
    """Report the job RUNNING."""
    self.run_on_agent_worker(INITIALIZE, job, lambda run: gate.initialize(run, services()))


@shared_task(base=DeployTask, bind=True, name=CAPACITY_GATE.name)
def capacity_gate(self: DeployTask, job: Job, **_: Any) -> None:
    """Plan the deployment, and ask the agent whether the cluster has room."""
    self.run_on_agent_worker(CAPACITY_GATE, job, lambda run: gate.capacity_gate(run, services()))


@shared_task(base=DeployTask, bind=True, name=SERVE_RUN.name)
def serve_run(self: DeployTask, job: Job, **_: Any) -> None:
    """Submit the application to Ray Serve."""
    self.run_on_agent_worker(SERVE_RUN, job, lambda run: serve.serve_run(run, services(), _cluster()))


@shared_task(base=DeployTask, bind=True, name=AWAIT_RUNNING.name)
def await_running(self: DeployTask, job: Job, **_: Any) -> None:
    """Poll Ray Serve until the application runs or has failed."""
    self.run_on_agent_worker(AWAIT_RUNNING, job, lambda run: serve.await_running(run, services(), _cluster()))


@shared_task(base=DeployTask, bind=True, name=REGISTER.name)
def register(self: DeployTask, job: Job, **_: Any) -> None:
    """Register the application in the backend."""
    self.run_on_agent_worker(REGISTER, job, lambda run: worker.deploy.register.register(run, services()))
