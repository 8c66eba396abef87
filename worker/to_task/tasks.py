"""The Celery tasks of `to_task`: each decodes its message and calls the step's function."""

from typing import Any

from celery import shared_task

import worker.to_task.annotate
import worker.to_task.prepare
from shared.messages import Job, ToTaskMessage
from worker.chunk_requests import chunk_requests
from worker.runs.bulkhead import all_but_three, bulkhead, chunk_share, release_share
from worker.runs.model import Continue, Outcome, Suspend
from worker.services import services
from worker.to_task import discover, results
from worker.to_task.annotate import dispatch_chunks
from worker.to_task.clients import annotation_runtime
from worker.to_task.steps import (
    ANNOTATE,
    FETCH_TASKS,
    FINALIZE,
    INITIALIZE,
    PREPARE,
    SPREAD,
    ToTaskRun,
)
from worker.workflow.intake import begin_run
from worker.workflow.task import StepTask
from worker.workflow.validation import Count


@shared_task(base=StepTask, bind=True, name=ToTaskMessage.task)
def to_task(self: StepTask, /, *args: Any, **kwargs: Any) -> None:
    """Pre-annotate the tasks of a project: the message that other services publish."""
    self.accept(ToTaskMessage, INITIALIZE, args, kwargs)


@shared_task(base=StepTask, bind=True, name=INITIALIZE.name)
def initialize(self: StepTask, job: Job, **_: Any) -> None:
    """Set the job RUNNING, unless it has ended."""

    def begin(run: ToTaskRun) -> Outcome:
        if (waits := services().runs.shares.take_run(run, INITIALIZE)) is not None:
            return waits
        return Continue(PREPARE) if begin_run(run, services()) else Suspend()

    self.run_step(INITIALIZE, job, begin)


@shared_task(base=StepTask, bind=True, name=PREPARE.name)
def prepare(self: StepTask, job: Job, **_: Any) -> None:
    """Check the parameters against the plugin and the project."""

    def check(run: ToTaskRun) -> Outcome:
        return worker.to_task.prepare.prepare(run, services())

    def check_in_share(run: ToTaskRun) -> Outcome:
        share = release_share(run.message.plugin)
        return bulkhead.run(share, self.request.retries, lambda: check(run))

    self.run_step(PREPARE, job, check_in_share)


@shared_task(base=StepTask, bind=True, name=FETCH_TASKS.name)
def fetch_tasks(self: StepTask, job: Job, **_: Any) -> None:
    """Collect every id, then publish the first chunks."""
    self.run_step(FETCH_TASKS, job, lambda run: discover.fetch_tasks(run, services(), dispatch_chunks))


@shared_task(base=StepTask, bind=True, name=SPREAD.name)
def spread(self: StepTask, job: Job, **_: Any) -> None:
    """Publish again the chunks whose messages were lost."""
    self.run_step(SPREAD, job, lambda run: dispatch_chunks(run, services()))


@shared_task(base=StepTask, bind=True, name=ANNOTATE.name)
def annotate(self: StepTask, job: Job, chunk: Count, **_: Any) -> None:
    """Annotate one chunk."""

    def work(run: ToTaskRun) -> Outcome:
        return worker.to_task.annotate.annotate(run, chunk, services(), annotation_runtime())

    def work_in_share(run: ToTaskRun) -> Outcome:
        shares, share = services().runs.shares, release_share(run.message.plugin)
        attempts, headers = self.progress_of_retries()
        kwargs = {"chunk": chunk, "generation": run.generation, **attempts}
        waits = shares.take_chunk(run, ANNOTATE, kwargs, headers)
        if waits is not None:
            return waits
        try:
            return bulkhead.run(share, self.request.retries, lambda: work(run), chunk_share)
        finally:
            shares.free_chunk(run)

    # A chunk without a slot is not even claimed, which is cheap; its release is known only after the claim.
    with bulkhead.acquire(ANNOTATE.name, all_but_three) as acquired:
        if acquired:
            try:
                self.run_step(ANNOTATE, job, work_in_share, part=str(chunk))
            finally:
                chunk_requests.end()
    if not acquired:
        self.retry_unclaimed(job, bulkhead.retry_countdown(ANNOTATE.name, self.request.retries))


@shared_task(base=StepTask, bind=True, name=FINALIZE.name)
def finalize(self: StepTask, job: Job, **_: Any) -> None:
    """Count and end."""
    self.run_step(FINALIZE, job, lambda run: results.finalize(run, services()))
