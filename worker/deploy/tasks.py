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
    alert_room,
    tell_room,
)
from worker.deploy.register import register
from worker.deploy.serve import await_running, clean_after_end, serve_run
from worker.plugins import PluginHostUnavailableError
from worker.runs.bulkhead import turns
from worker.runs.model import Continue, Outcome, Park, PollAgain, Run, Step
from worker.runs.publisher import publish
from worker.services import services
from worker.workflow.intake import begin_run
from worker.workflow.task import BACKBONE_ERRORS, StepFunction, WorkflowTask

log = structlog.get_logger(__name__)


CLUSTER = "cluster"
"""The neighbour that the agent and Ray are together."""
ON_CLUSTER = (CAPACITY_GATE, SERVE_RUN, AWAIT_RUNNING)


class DeployTask(WorkflowTask):
    """A step that must run where its agent's cluster is."""

    abstract = True

    def at_home(self, step: Step, job: str, function: StepFunction) -> None:
        """Carry the step out, or pass its message on to the workers of the run's agent."""

        def in_turn(run: Run) -> Outcome:
            # The agent and Ray may hang: half of the threads stay free for runs that need neither.
            with turns.take(CLUSTER) as mine:
                return function(run) if mine else PollAgain(turns.countdown(CLUSTER, self.request.retries))

        try:
            agent = self._other_agent(job)
            if agent is not None:
                kwargs = self.request.kwargs
                if self.is_redelivered():  # which the broker forgets with the message
                    kwargs = {**kwargs, "redelivered": True}
                self.runs.sender.send(step, DeployMessage.agent_queue(agent), kwargs)
                return
        except BACKBONE_ERRORS:
            self.come_back(1.0)
        self.carry_out(step, job, in_turn if step in ON_CLUSTER else function)

    def pass_on(self, args: tuple[Any, ...], kwargs: dict[str, Any], agent: int) -> None:
        """Send the run's own message to the workers of its agent, unchanged."""
        try:
            publish(self.app, self.name, DeployMessage.agent_queue(agent), kwargs, args=args)
        except BACKBONE_ERRORS:
            self.come_back(1.0)

    def taken_in(self, message: DeployMessage | ToTaskMessage) -> None:
        """Who waits for what it deploys gives it time to begin."""
        if isinstance(message, DeployMessage):
            alert_room(message, services())

    def after_end(self, job: str) -> None:
        """A stopped run leaves nothing half-started behind."""
        with turns.take(CLUSTER) as mine:
            if not mine:
                raise PluginHostUnavailableError("other deployments hold this worker's turns")
            clean_after_end(job, services(), _cluster())

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
        self.pass_on(args, kwargs, agent)
    else:
        self.accept(DeployMessage, INITIALIZE, args, kwargs)


@shared_task(base=DeployTask, bind=True, name=INITIALIZE.name)
def initialize(self: DeployTask, job: Job, **_: Any) -> None:
    """Tell the backend that the job runs."""
    self.at_home(INITIALIZE, job, _initialize)


def _initialize(run: Run) -> Outcome:
    if not begin_run(run, services()):
        return Park()
    tell_room(run, services())
    return Continue(CAPACITY_GATE)


@shared_task(base=DeployTask, bind=True, name=CAPACITY_GATE.name)
def gate(self: DeployTask, job: Job, **_: Any) -> None:
    """Plan, and ask the agent for room."""
    self.at_home(CAPACITY_GATE, job, lambda run: capacity_gate(run, services()))


@shared_task(base=DeployTask, bind=True, name=SERVE_RUN.name)
def submit(self: DeployTask, job: Job, **_: Any) -> None:
    """Hand the application to Serve."""
    self.at_home(SERVE_RUN, job, lambda run: serve_run(run, services(), _cluster()))


@shared_task(base=DeployTask, bind=True, name=AWAIT_RUNNING.name)
def wait(self: DeployTask, job: Job, **_: Any) -> None:
    """Look whether it runs."""
    self.at_home(AWAIT_RUNNING, job, lambda run: await_running(run, services(), _cluster()))


@shared_task(base=DeployTask, bind=True, name=REGISTER.name)
def tell(self: DeployTask, job: Job, **_: Any) -> None:
    """Tell the backend where it is."""
    self.at_home(REGISTER, job, lambda run: register(run, services()))
