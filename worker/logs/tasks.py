"""`tail_logs`, the entry task of the queue `logs`: it adds a subscription, which a relay then serves."""

from typing import Any

import structlog
from celery import shared_task
from pydantic import ValidationError

from shared.messages import TailLogsMessage
from worker.logs.subscriptions import subscribe
from worker.runs.events import MESSAGE_HEADROOM_ENTRIES
from worker.services import services
from worker.workflow.task import INFRASTRUCTURE_ERRORS, WorkflowTask
from worker.workflow.validation import mistakes

log = structlog.get_logger(__name__)


@shared_task(base=WorkflowTask, bind=True, name=TailLogsMessage.task)
def tail_logs(self: WorkflowTask, /, *args: Any, **kwargs: Any) -> None:
    """Relay the log of a Ray job to the log channel of a job; the Ray job itself is not touched."""
    if args:
        self.reject(args, kwargs, "arguments must be sent by name")
        return
    try:
        message = TailLogsMessage.model_validate(kwargs)
    except ValidationError as error:
        self.reject(args, kwargs, mistakes(error))
        return
    history_entries = services().settings.worker_stream_max_lines + MESSAGE_HEADROOM_ENTRIES
    try:
        is_open = subscribe(services().redis, message, history_entries)
    except INFRASTRUCTURE_ERRORS as error:
        log.warning("log subscription retry scheduled", job=message.job, error_type=type(error).__name__)
        self.retry_later(1.0)
    log.info("log subscribed" if is_open else "log already closed", job=message.job, ray_job=message.ray_job)
