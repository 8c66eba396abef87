"""A Redis transport and a consumer for Celery that correct what the stock ones get wrong.

- A message is fetched and recorded as unacknowledged in one atomic step.
- Messages are redelivered by Redis's clock, not by the workers'.
- An acknowledgement is sent later when Redis cannot be reached at that moment.
- A message that cannot be read is kept as a dead letter instead of ending the worker.
- A worker that stops or loses its connection requeues exactly the messages that it does not run.

Publishers need none of this.
"""

from worker.broker.config import ClockOffsetError, broker_settings, broker_url, check_clock
from worker.broker.connection import AMQP, Connection
from worker.broker.rejections import UNKNOWN_STEP, RejectedMessage, message_rejected, step_unknown

__all__ = [
    "AMQP",
    "UNKNOWN_STEP",
    "ClockOffsetError",
    "Connection",
    "RejectedMessage",
    "broker_settings",
    "broker_url",
    "check_clock",
    "message_rejected",
    "step_unknown",
]
