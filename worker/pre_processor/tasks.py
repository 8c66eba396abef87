"""The Celery tasks of the steps that bring a run to a running pre-processor."""

from typing import Any

from celery import shared_task

import worker.pre_processor.dispatch
import worker.pre_processor.poll
from shared.messages import Job
from worker.pre_processor.waitlist import AWAIT_READY, DETECT, DISPATCH, WaitlistKey
from worker.services import services
from worker.workflow.task import Retry, StepTask


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
    self: StepTask, room: WaitlistKey, generation: int, attempt: int = 0, redelivered: bool = False
) -> None:
    """The one poll of a waiting list, on behalf of all its runs. Older workers name its argument `room`."""
    redelivered = redelivered or self.is_redelivered()

    def poll() -> Retry | None:
        following = worker.pre_processor.poll.await_ready(
            room, generation, services(), redelivered=redelivered, attempt=attempt
        )
        if following is None:
            return None
        changes = {
            "generation": following.generation,
            "attempt": following.attempt,
            "redelivered": following.redelivered,
        }
        return Retry(following.countdown, changes)

    self.run_task(poll)
