"""Doors of the steps: each decodes its message and calls a plain function."""

from typing import Any

from celery import shared_task

from shared.messages import Job, ToTaskMessage
from worker.runs.bulkhead import bulkhead
from worker.runs.model import Continue, Outcome, Run, Suspend
from worker.services import services
from worker.to_task import annotate as chunk_step
from worker.to_task import annotate as window
from worker.to_task import discover, results
from worker.to_task import prepare as checks
from worker.to_task.clients import crew
from worker.to_task.steps import ANNOTATE, FETCH_TASKS, FINALIZE, INITIALIZE, PREPARE, SPREAD
from worker.workflow.intake import begin_run
from worker.workflow.task import WorkflowTask
from worker.workflow.validation import Count


@shared_task(base=WorkflowTask, bind=True, name=ToTaskMessage.task)
def to_task(self: WorkflowTask, /, *args: Any, **kwargs: Any) -> None:
    """Pre-annotate the tasks of a project: the message that other services publish."""
    self.accept(ToTaskMessage, INITIALIZE, args, kwargs)


@shared_task(base=WorkflowTask, bind=True, name=INITIALIZE.name)
def initialize(self: WorkflowTask, job: Job, **_: Any) -> None:
    """The job is RUNNING, unless it is over already."""

    def begin(run: Run) -> Outcome:
        return Continue(PREPARE) if begin_run(run, services()) else Suspend()

    self.run_step(INITIALIZE, job, begin)


@shared_task(base=WorkflowTask, bind=True, name=PREPARE.name)
def prepare(self: WorkflowTask, job: Job, **_: Any) -> None:
    """Check the parameters against the plugin and the project."""
    self.run_step(PREPARE, job, lambda run: checks.prepare(run, services()))


@shared_task(base=WorkflowTask, bind=True, name=FETCH_TASKS.name)
def fetch_tasks(self: WorkflowTask, job: Job, **_: Any) -> None:
    """Collect every id."""
    self.run_step(FETCH_TASKS, job, lambda run: discover.fetch_tasks(run, services()))


@shared_task(base=WorkflowTask, bind=True, name=SPREAD.name)
def spread(self: WorkflowTask, job: Job, **_: Any) -> None:
    """Send the first chunks, or those that got lost."""
    self.run_step(SPREAD, job, lambda run: window.spread(run, services()))


@shared_task(base=WorkflowTask, bind=True, name=ANNOTATE.name)
def annotate(self: WorkflowTask, job: Job, chunk: Count, **_: Any) -> None:
    """Work one chunk."""
    # A pass takes as long as it may: one thread stays free for the stop that ends it.
    with bulkhead.acquire(ANNOTATE.name, all_but_one=True) as mine:
        if mine:
            self.run_step(
                ANNOTATE,
                job,
                lambda run: chunk_step.annotate(run, chunk, services(), crew()),
                part=str(chunk),
            )
    if not mine:
        self.retry_unclaimed(job, bulkhead.retry_countdown(ANNOTATE.name, self.request.retries))


@shared_task(base=WorkflowTask, bind=True, name=FINALIZE.name)
def finalize(self: WorkflowTask, job: Job, **_: Any) -> None:
    """Count and end."""
    self.run_step(FINALIZE, job, lambda run: results.finalize(run, services()))
