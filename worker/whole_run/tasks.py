"""The Celery tasks of runs whose action runs whole."""

from typing import Any

from celery import shared_task

from shared.messages import Job
from worker.per_process import once_per_process
from worker.plugins import PluginHostUnavailableError
from worker.runs.bulkhead import bulkhead
from worker.runs.model import RunMessage, WorkflowStep
from worker.services import services
from worker.whole_run import run as whole_run
from worker.whole_run.ray_jobs import RayJobs
from worker.whole_run.run import AWAIT_END, SUBMIT, WholeRunState
from worker.workflow.agent_task import CLUSTER, AgentTask
from worker.workflow.task import StepFunction


class WholeRunTask(AgentTask):
    """A step of such a run, on a worker of the agent whose cluster has the Ray job."""

    abstract = True

    def run_on_cluster(
        self,
        step: WorkflowStep[RunMessage, WholeRunState],
        job: str,
        function: StepFunction[RunMessage, WholeRunState],
    ) -> None:
        """Run the step with a slot of the cluster, or send its message to the workers of its agent."""
        if not self.sent_to_other_worker(step, job):
            tries = self.request.retries
            self.run_step(step, job, lambda run: bulkhead.run(CLUSTER, tries, lambda: function(run)))

    def on_message_after_end(self, job: str) -> None:
        """Stop the Ray job of a run that was stopped."""
        with bulkhead.acquire(CLUSTER) as acquired:
            if not acquired:
                raise PluginHostUnavailableError("other runs hold the slots of this worker's bulkhead")
            whole_run.stop_after_end(job, services(), _jobs())


@once_per_process
def _jobs() -> RayJobs:
    return RayJobs(services().ray, services().packages)


@shared_task(base=WholeRunTask, bind=True, name=SUBMIT.name)
def submit(self: WholeRunTask, job: Job, **_: Any) -> None:
    """Submit the Ray job."""
    self.run_on_cluster(SUBMIT, job, lambda run: whole_run.submit(run, services(), _jobs()))


@shared_task(base=WholeRunTask, bind=True, name=AWAIT_END.name)
def await_end(self: WholeRunTask, job: Job, **_: Any) -> None:
    """Poll the Ray job until it has ended."""
    self.run_on_cluster(AWAIT_END, job, lambda run: whole_run.await_end(run, services(), _jobs()))
