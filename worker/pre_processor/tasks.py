"""The Celery tasks of the steps that bring a run to a running pre-processor."""

from typing import Any

from celery import exceptions, shared_task

import worker.pre_processor.dispatch
import worker.pre_processor.poll
from shared.messages import Job
from worker.pre_processor.waitlist import (
    AWAIT_READY,
    DETECT,
    DISPATCH,
    Waitlist,
    WaitlistKey,
    WaitlistName,
)
from worker.runs.model import Lease, RunFailedError
from worker.services import services
from worker.workflow.delivery import Retry
from worker.workflow.task import StepTask

LOCKED_RETRY_SECONDS = 0.3


@shared_task(base=StepTask, bind=True, name=DETECT.name)
def detect(self: StepTask, job: Job, **_: Any) -> None:
    """Is the pre-processor running?"""
    self.run_step(DETECT, job, lambda run: worker.pre_processor.dispatch.detect(run, services()))


@shared_task(base=StepTask, bind=True, name=DISPATCH.name)
def dispatch(self: StepTask, job: Job, **_: Any) -> None:
    """Join the waiting list; one of its runs dispatches the deployment."""
    self.run_step(DISPATCH, job, lambda run: worker.pre_processor.dispatch.dispatch(run, services()))


@shared_task(base=StepTask, bind=True, name=AWAIT_READY.name)
def await_ready(
    self: StepTask, room: WaitlistKey, attempt: int = 0, running_at: float = 0.0, **_: Any
) -> None:
    """The one poll of a waiting list, on behalf of all its runs. Older workers name its argument `room`."""
    waitlist = Waitlist(services().redis, WaitlistName.parse(room))

    failure = ""

    def poll(claimed: int, _: Lease) -> Retry | None:
        nonlocal failure
        polled = worker.pre_processor.poll.await_ready(waitlist, claimed, attempt, services(), running_at)
        failure, following = polled.failure, polled.following
        if following is None:
            return None
        changes = {"generation": following.generation, "attempt": following.attempt, "redelivered": False}
        return Retry(following.countdown, changes, goes_first=True)

    try:
        self.run_poll(waitlist.claim_poll, poll, lock=waitlist.lock, locked_seconds=LOCKED_RETRY_SECONDS)
    except exceptions.Retry:
        # The next poll is published.
        if not failure:
            raise
    if failure:
        raise RunFailedError(failure)
