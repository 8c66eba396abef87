"""The base class of steps that work on one agent's Ray cluster, and so run on a worker of that agent."""

from typing import Any

from shared.messages import DeployMessage
from worker.blame import INFRASTRUCTURE_ERRORS
from worker.runs.model import WorkflowStep
from worker.services import services
from worker.workflow.task import StepTask

CLUSTER = "cluster"
"""The bulkhead around the agent and Ray: a cluster that hangs holds no more threads than its slots."""


class AgentTask(StepTask):
    """A step that runs on a worker of its run's agent."""

    abstract = True

    def sent_to_other_worker(self, step: WorkflowStep[Any, Any], job: str) -> bool:
        """Send the step's message to the workers of the run's agent, if this one serves another."""
        try:
            agent = self._other_agent(job)
            if agent is None:
                return False
            kwargs = self.request.kwargs
            if self.is_redelivered():  # the new message's own delivery does not say it
                kwargs = {**kwargs, "redelivered": True}
            queue = DeployMessage.agent_queue(agent)
            self.runs.publisher.publish(step, queue, kwargs, priority=self.priority)
        except INFRASTRUCTURE_ERRORS as error:
            self.retry_for_infrastructure(error, redelivered=self.is_redelivered())
            return False
        return True

    def _other_agent(self, job: str) -> int | None:
        """The run's agent, if this worker serves another one; else None."""
        own = services().settings.worker_agent
        if own is None or not self.runs.store.exists(job):
            return None
        message = self.runs.store.load(job).message
        agent = message.agent if isinstance(message, DeployMessage) else message.params.agent
        return agent if agent != own else None
