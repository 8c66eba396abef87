"""Selects the transport while URLs stay what they are.

`Celery("worker", amqp=AMQP)` is all that an application does. A `broker_transport` setting would do as
well, but then the transport's path takes the place of `redis` in every URL that kombu shows, `rediss://` no
longer means TLS, and Flower does not know the broker any more.
"""

from typing import Any

from celery.app import amqp
from kombu import Connection as KombuConnection
from kombu import pools
from kombu.transport import redis

from worker.broker.transport import Transport
from worker.platform import redact


class Connection(KombuConnection):
    """A connection whose Redis transport is ours; RabbitMQ and all others are kombu's."""

    def get_transport_cls(self) -> Any:
        """The class for this connection's URL."""
        found = super().get_transport_cls()
        return Transport if found is redis.Transport else found

    def info(self) -> dict[str, Any]:
        """What `inspect stats` tells monitors. Of a socket the host is all of the address, password too."""
        told: dict[str, Any] = super().info()
        return {**told, "hostname": redact(told["hostname"] or "")}


SECONDS_TO_CONFIRM = 10.0
"""A broker that has not confirmed a message by then counts as away, and the message is sent again."""

_CONFIRMED = {"confirm_publish": True}
"""RabbitMQ says when it has a message for good; until then a step must not be acknowledged for having sent
its successor. Unasked it says nothing, and one that is killed loses what it was sent last. Other transports
pass it over."""


class AMQP(amqp.AMQP):
    """What an application makes its connections with."""

    Connection = Connection
    BrokerConnection = Connection
    _producer_pool: Any = None

    @property
    def producer_pool(self) -> Any:
        """Who publishes tasks. Their connections alone are confirmed.

        The consumer's loop sends events and heartbeats on another, and would else consume nothing while a
        RabbitMQ that is short of memory takes nothing, which is what would free its memory.
        """
        if self._producer_pool is None:
            connection = self.app.connection_for_write(transport_options=_CONFIRMED)
            self._producer_pool = pools.producers[connection]
            self._producer_pool.limit = self.app.pool.limit
        return self._producer_pool

    def _create_task_sender(self) -> Any:
        send = super()._create_task_sender()

        def send_task_message(*args: Any, **options: Any) -> Any:
            # Without it a thread would wait for a silent broker for ever.
            return send(*args, **{"confirm_timeout": SECONDS_TO_CONFIRM, **options})

        return send_task_message
