"""Doors of a deployment: the message, and its steps."""

from typing import Any

import structlog
from celery import shared_task

from shared.messages import DeployMessage, Job, ToTaskMessage
from worker.deploy.cluster import RayCluster
from worker.deploy.gate import capacity_gate
from worker.deploy.plan import (
    AWAIT_RUNNING,
    CAPACITY_GATE,
    INITIALIZE,
    REGISTER,
    SERVE_RUN,
    extend_dispatch_deadline,
    set_dispatched_job,
)
from worker.deploy.register import register
from worker.deploy.serve import await_running, clean_up_after_end, serve_run
from worker.plugins import PluginHostUnavailableError
from worker.runs.bulkhead import bulkhead
from worker.runs.model import Continue, Outcome, Reschedule, Run, Step, Suspend
from worker.runs.publisher import send_task
from worker.services import services
from worker.workflow.intake import begin_run
from worker.workflow.task import INFRASTRUCTURE_ERRORS, StepFunction, WorkflowTask

log = structlog.get_logger(__name__)


CLUSTER = "cluster"
"""The neighbour that the agent and Ray are together."""
ON_CLUSTER = (CAPACITY_GATE, SERVE_RUN, AWAIT_RUNNING)


class DeployTask(WorkflowTask):
    """A step that must run where its agent's cluster is."""

    abstract = True

    def run_on_agent_worker(self, step: Step, job: str, function: StepFunction) -> None:
        """Carry the step out, or pass its message on to the workers of the run's agent."""

        def in_turn(run: Run) -> Outcome:
            # The agent and Ray may hang: half of the threads stay free for runs that need neither.
            with bulkhead.acquire(CLUSTER) as mine:
                return (
                    function(run)
                    if mine
                    else Reschedule(bulkhead.retry_countdown(CLUSTER, self.request.retries))
                )

        try:
            agent = self._other_agent(job)
            if agent is not None:
                kwargs = self.request.kwargs
                if self.is_redelivered():  # which the broker forgets with the message
                    kwargs = {**kwargs, "redelivered": True}
                self.runs.publisher.publish(step, DeployMessage.agent_queue(agent), kwargs)
                return
        except INFRASTRUCTURE_ERRORS:
            self.retry_later(1.0)
        self.run_step(step, job, in_turn if step in ON_CLUSTER else function)

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any], agent: int) -> None:
        """Send the run's own message to the workers of its agent, unchanged."""
        try:
            send_task(self.app, self.name, DeployMessage.agent_queue(agent), kwargs, args=args)
        except INFRASTRUCTURE_ERRORS:
            self.retry_later(1.0)

    def on_accepted(self, message: DeployMessage | ToTaskMessage) -> None:
        """Who waits for what it deploys gives it time to begin."""
        if isinstance(message, DeployMessage):
            extend_dispatch_deadline(message, services())

    def on_message_after_end(self, job: str) -> None:
        """A stopped run leaves nothing half-started behind."""
        with bulkhead.acquire(CLUSTER) as mine:
            if not mine:
                raise PluginHostUnavailableError("other deployments hold this worker's turns")
            clean_up_after_end(job, services(), _cluster())

    def _other_agent(self, job: str) -> int | None:
        """The run's agent, if this worker serves another one."""
        mine = services().settings.worker_agent
        if mine is None or not self.runs.store.exists(job):
            return None
        message = self.runs.store.load(job).message
        return message.agent if isinstance(message, DeployMessage) and message.agent != mine else None


def _cluster() -> RayCluster:
    return RayCluster(services().settings.ray_address)


@shared_task(base=DeployTask, bind=True, name=DeployMessage.task)
def deploy(self: DeployTask, /, *args: Any, **kwargs: Any) -> None:
    """The door: take the message in, or pass it on to the workers of its agent."""
    mine, agent = services().settings.worker_agent, kwargs.get("agent")
    if mine is not None and type(agent) is int and agent > 0 and agent != mine:
        self.forward(args, kwargs, agent)
    else:
        self.accept(DeployMessage, INITIALIZE, args, kwargs)


@shared_task(base=DeployTask, bind=True, name=INITIALIZE.name)
def initialize(self: DeployTask, job: Job, **_: Any) -> None:
    """Tell the backend that the job runs."""
    self.run_on_agent_worker(INITIALIZE, job, _initialize)


def _initialize(run: Run) -> Outcome:
    if not begin_run(run, services()):
        return Suspend()
    set_dispatched_job(run, services())
    return Continue(CAPACITY_GATE)


@shared_task(base=DeployTask, bind=True, name=CAPACITY_GATE.name)
def capacity_gate_task(self: DeployTask, job: Job, **_: Any) -> None:
    """Plan, and ask the agent for room."""
    self.run_on_agent_worker(CAPACITY_GATE, job, lambda run: capacity_gate(run, services()))


@shared_task(base=DeployTask, bind=True, name=SERVE_RUN.name)
def serve_run_task(self: DeployTask, job: Job, **_: Any) -> None:
    """Hand the application to Serve."""
    self.run_on_agent_worker(SERVE_RUN, job, lambda run: serve_run(run, services(), _cluster()))


@shared_task(base=DeployTask, bind=True, name=AWAIT_RUNNING.name)
def await_running_task(self: DeployTask, job: Job, **_: Any) -> None:
    """Look whether it runs."""
    self.run_on_agent_worker(AWAIT_RUNNING, job, lambda run: await_running(run, services(), _cluster()))


@shared_task(base=DeployTask, bind=True, name=REGISTER.name)
def register_task(self: DeployTask, job: Job, **_: Any) -> None:
    """Tell the backend where it is."""
    self.run_on_agent_worker(REGISTER, job, lambda run: register(run, services()))
