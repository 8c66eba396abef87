"""What the stock Redis transport and consumer of Celery get wrong, mended.

A message is fetched and written down in one go, redelivered by Redis's clock, acknowledged even when Redis
was away at that moment; one that cannot be read is kept as a dead letter instead of ending the worker; a
worker that stops or loses its connection lets go of exactly what it does not run. Publishers need nothing
of this.
"""

from worker.broker.config import ClockOffError, broker_settings, broker_url, check_clock
from worker.broker.connection import AMQP, Connection
from worker.broker.rejections import RefusedMessage, message_refused

__all__ = [
    "AMQP",
    "ClockOffError",
    "Connection",
    "RefusedMessage",
    "broker_settings",
    "broker_url",
    "check_clock",
    "message_refused",
]
