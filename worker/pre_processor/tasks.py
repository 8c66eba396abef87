"""Doors of the steps before a pre-processor runs."""

from typing import Any

import structlog
from celery import shared_task

from shared.messages import Job
from worker.pre_processor import dispatch, poll
from worker.pre_processor import dispatch as detection
from worker.pre_processor.waitlist import AWAIT_READY, DETECT, DISPATCH, WaitlistKey
from worker.services import services
from worker.workflow.task import INFRASTRUCTURE_ERRORS, WorkflowTask

log = structlog.get_logger(__name__)


@shared_task(base=WorkflowTask, bind=True, name=DETECT.name)
def detect(self: WorkflowTask, job: Job, **_: Any) -> None:
    """Is the pre-processor running?"""
    self.run_step(DETECT, job, lambda run: detection.detect(run, services()))


@shared_task(base=WorkflowTask, bind=True, name=DISPATCH.name)
def join(self: WorkflowTask, job: Job, **_: Any) -> None:
    """Wait for it; one of all starts it."""
    self.run_step(DISPATCH, job, lambda run: dispatch.dispatch(run, services()))


@shared_task(base=WorkflowTask, bind=True, name=AWAIT_READY.name)
def await_ready(
    self: WorkflowTask, room: WaitlistKey, generation: int, attempt: int = 0, redelivered: bool = False
) -> None:
    """The one poll of a room, for everybody in it."""
    redelivered = redelivered or bool((self.request.delivery_info or {}).get("redelivered"))
    try:
        again = poll.poll(room, generation, services(), redelivered=redelivered, attempt=attempt)
    except INFRASTRUCTURE_ERRORS as error:
        log.warning("poll comes back", room=room, error_type=type(error).__name__)
        again = poll.Again(1.0, generation, attempt, redelivered=True)
    if again is not None:
        self.retry_later(
            again.countdown,
            generation=again.generation,
            attempt=again.attempt,
            redelivered=again.redelivered,
        )
