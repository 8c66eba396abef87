"""`tail_logs`, the door of the queue `logs`: it books a log, and the relays follow it."""

from typing import Any

import structlog
from celery import shared_task
from pydantic import ValidationError

from shared.messages import TailLogsMessage
from worker.logs.subscriptions import book
from worker.runs.events import MESSAGE_HEADROOM
from worker.services import services
from worker.workflow.task import INFRASTRUCTURE_ERRORS, WorkflowTask
from worker.workflow.validation import mistakes

log = structlog.get_logger(__name__)


@shared_task(base=WorkflowTask, bind=True, name=TailLogsMessage.task)
def tail_logs(self: WorkflowTask, /, *args: Any, **kwargs: Any) -> None:
    """Have the log of a Ray job followed on the log channel of a job; the job itself is not touched."""
    if args:
        self.reject(args, kwargs, "arguments must be sent by name")
        return
    try:
        message = TailLogsMessage.model_validate(kwargs)
    except ValidationError as error:
        self.reject(args, kwargs, mistakes(error))
        return
    longest = services().settings.worker_stream_max_lines + MESSAGE_HEADROOM
    try:
        is_open = book(services().redis, message, longest)
    except INFRASTRUCTURE_ERRORS as error:
        log.warning("booking comes back", job=message.job, error_type=type(error).__name__)
        self.retry_later(1.0)
    log.info("log booked" if is_open else "log is over already", job=message.job, ray_job=message.ray_job)
