"""A Redis transport and a consumer for Celery that correct what the stock ones get wrong.

- A message is fetched and recorded as unacknowledged in one atomic step.
- Messages are delayed and redelivered by Redis's clock, not in the workers' memory and by theirs.
- Of many idle consumers one is woken, and the others cost nothing.
- An acknowledgement is sent later when Redis cannot be reached at that moment.
- A message that cannot be read is kept as a dead letter instead of ending the worker.
- A worker that stops or loses its connection requeues exactly the messages that it does not run.

Publishers need none of this.
"""

from worker.broker.config import broker_settings, broker_url
from worker.broker.connection import AMQP, Connection
from worker.broker.rejections import UNKNOWN_STEP, RejectedMessage, message_rejected, step_unknown

__all__ = [
    "AMQP",
    "UNKNOWN_STEP",
    "Connection",
    "RejectedMessage",
    "broker_settings",
    "broker_url",
    "message_rejected",
    "step_unknown",
]
