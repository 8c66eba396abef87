"""Selects the transport without a change to broker URLs.

An application only says `Celery("worker", amqp=AMQP)`. The setting `broker_transport` would select it too,
but then the transport's path replaces `redis` in every URL that kombu shows, `rediss://` no longer means TLS,
and Flower does not recognise the broker.
"""

from typing import Any

from kombu import pools

from shared import redis_broker
from worker.broker.transport import Transport
from worker.platform import redact

_HIDDEN_OPTIONS = ("redis_url", "sentinel_kwargs")


class Connection(redis_broker.Connection):
    """A connection that uses this package's transport for Redis and kombu's for RabbitMQ and all others."""

    redis_transport = Transport

    def info(self) -> dict[str, object]:
        """What `inspect stats` shows to monitors.

        The host of a Unix socket is the whole address, including the password, which is redacted. Transport
        options that hold secrets, or that JSON cannot hold, are left out.
        """
        shown: dict[str, Any] = super().info()
        options = {
            name: value for name, value in shown["transport_options"].items() if name not in _HIDDEN_OPTIONS
        }
        return {
            **shown,
            "hostname": redact(str(shown["hostname"] or "")),
            "transport_options": options,
        }


CONFIRM_TIMEOUT_SECONDS = 10.0
"""A broker that has not confirmed a message by then counts as unavailable, and the message is sent again."""

_PUBLISHER_CONFIRMS = {"confirm_publish": True}
"""RabbitMQ confirms that it has stored a message; only then may a step be acknowledged for having sent its
successor. Without confirms, a RabbitMQ that is killed loses the last messages unnoticed. Other transports
ignore the option."""


class AMQP(redis_broker.AMQP):
    """Makes an application's connections and producers."""

    Connection = Connection
    BrokerConnection = Connection
    _producer_pool: Any = None

    @property
    def producer_pool(self) -> Any:
        """The producers that publish tasks. Only their connections use publisher confirms.

        The consumer's loop sends events and heartbeats on another connection. With confirms there, it would
        consume nothing while a RabbitMQ that is short of memory accepts nothing, although consuming is what
        would free its memory.
        """
        if self._producer_pool is None:
            connection = self.app.connection_for_write(transport_options=_PUBLISHER_CONFIRMS)
            self._producer_pool = pools.producers[connection]
            self._producer_pool.limit = self.app.pool.limit
        return self._producer_pool

    def _create_task_sender(self) -> Any:
        send = super()._create_task_sender()

        def send_task_message(*args: Any, **options: Any) -> Any:
            # Without a timeout a thread would wait for a silent broker forever.
            return send(*args, **{"confirm_timeout": CONFIRM_TIMEOUT_SECONDS, **options})

        return send_task_message
