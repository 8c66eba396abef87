"""The Celery tasks of the steps that bring a run to a running pre-processor."""

from typing import Any

import structlog
from celery import shared_task

import worker.pre_processor.dispatch
import worker.pre_processor.poll
from shared.messages import Job
from worker.pre_processor.poll import NextPoll
from worker.pre_processor.waitlist import AWAIT_READY, DETECT, DISPATCH, WaitlistKey
from worker.services import services
from worker.workflow.task import INFRASTRUCTURE_ERRORS, WorkflowTask

log = structlog.get_logger(__name__)

REDIS_RETRY_SECONDS = 1.0


@shared_task(base=WorkflowTask, bind=True, name=DETECT.name)
def detect(self: WorkflowTask, job: Job, **_: Any) -> None:
    """Is the pre-processor running?"""
    self.run_step(DETECT, job, lambda run: worker.pre_processor.dispatch.detect(run, services()))


@shared_task(base=WorkflowTask, bind=True, name=DISPATCH.name)
def dispatch(self: WorkflowTask, job: Job, **_: Any) -> None:
    """Join the waiting list; one of its runs dispatches the deployment."""
    self.run_step(DISPATCH, job, lambda run: worker.pre_processor.dispatch.dispatch(run, services()))


@shared_task(base=WorkflowTask, bind=True, name=AWAIT_READY.name)
def await_ready(
    self: WorkflowTask, room: WaitlistKey, generation: int, attempt: int = 0, redelivered: bool = False
) -> None:
    """The one poll of a waiting list, on behalf of all its runs. Older workers name its argument `room`."""
    redelivered = redelivered or bool((self.request.delivery_info or {}).get("redelivered"))
    try:
        following = worker.pre_processor.poll.await_ready(
            room, generation, services(), redelivered=redelivered, attempt=attempt
        )
    except INFRASTRUCTURE_ERRORS as error:
        log.warning("poll retry scheduled", room=room, error_type=type(error).__name__)
        following = NextPoll(REDIS_RETRY_SECONDS, generation, attempt, redelivered=True)
    if following is not None:
        self.retry_later(
            following.countdown,
            generation=following.generation,
            attempt=following.attempt,
            redelivered=following.redelivered,
        )
