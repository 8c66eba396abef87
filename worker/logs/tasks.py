"""`tail_logs`, the door of the queue `logs`: it books a log, and the relays follow it."""

from typing import Any

import structlog
from celery import shared_task
from pydantic import ValidationError

from shared.messages import TailLogsMessage
from worker.logs.subscriptions import book
from worker.runs.events import ROOM_FOR_MESSAGES
from worker.services import services
from worker.workflow.task import BACKBONE_ERRORS, WorkflowTask
from worker.workflow.validation import mistakes

log = structlog.get_logger(__name__)


@shared_task(base=WorkflowTask, bind=True, name=TailLogsMessage.task)
def tail_logs(self: WorkflowTask, /, *args: Any, **kwargs: Any) -> None:
    """Have the log of a Ray job followed on the log channel of a job; the job itself is not touched."""
    if args:
        self.refuse(args, kwargs, "arguments must be sent by name")
        return
    try:
        message = TailLogsMessage.model_validate(kwargs)
    except ValidationError as error:
        self.refuse(args, kwargs, mistakes(error))
        return
    longest = services().settings.worker_stream_max_lines + ROOM_FOR_MESSAGES
    try:
        is_open = book(services().redis, message, longest)
    except BACKBONE_ERRORS as error:
        log.warning("booking comes back", job=message.job, error_type=type(error).__name__)
        self.come_back(1.0)
    log.info("log booked" if is_open else "log is over already", job=message.job, ray_job=message.ray_job)
