"""`tail_logs`, the door of the queue `logs`: it books a log, and the relays follow it."""

from typing import Any

import structlog
from celery import shared_task

from shared.messages import TailLogsMessage
from worker.logs.subscriptions import book
from worker.runs.events import MESSAGE_HEADROOM
from worker.services import services
from worker.workflow.task import StepTask

log = structlog.get_logger(__name__)


@shared_task(base=StepTask, bind=True, name=TailLogsMessage.task)
def tail_logs(self: StepTask, /, *args: Any, **kwargs: Any) -> None:
    """Have the log of a Ray job followed on the log channel of a job; the job itself is not touched."""
    message = self.parse(TailLogsMessage, args, kwargs)
    if message is not None:
        self.run_task(lambda: _subscribe(message))


def _subscribe(message: TailLogsMessage) -> None:
    longest = services().settings.worker_stream_max_lines + MESSAGE_HEADROOM
    is_open = book(services().redis, message, longest)
    log.info(
        "log subscribed" if is_open else "log has ended already", job=message.job, ray_job=message.ray_job
    )
