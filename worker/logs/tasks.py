"""`tail_logs`, the entry task of the queue `logs`: it adds a subscription, which a relay then serves."""

from typing import Any

import structlog
from celery import shared_task

from shared.messages import TailLogsMessage
from worker.runs.events import MESSAGE_HEADROOM_ENTRIES, subscribe_log
from worker.services import services
from worker.workflow.task import StepTask

log = structlog.get_logger(__name__)


@shared_task(base=StepTask, bind=True, name=TailLogsMessage.task)
def tail_logs(self: StepTask, /, *args: Any, **kwargs: Any) -> None:
    """Relay the log of a Ray job to the log channel of a job; the Ray job itself is not touched."""
    message = self.parse(TailLogsMessage, args, kwargs)
    self.run_task(lambda: _tail_logs(message))


def _tail_logs(message: TailLogsMessage) -> None:
    history_entries = services().settings.worker_stream_max_lines + MESSAGE_HEADROOM_ENTRIES
    is_open = subscribe_log(services().redis, message, history_entries)
    log.info("log subscribed" if is_open else "log already closed", job=message.job, ray_job=message.ray_job)
