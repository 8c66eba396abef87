"""Publish work: a thin, typed skin over Celery's ``send_task``."""

import ssl

from celery import Celery

from shared.messages import Message

REDIS_TIMEOUTS = {"socket_connect_timeout": 4, "socket_timeout": 5}
"""Seconds. Without them a Redis that takes the connection and says nothing holds the publisher for ever."""

SECONDS_TO_CONFIRM = 5
"""In which RabbitMQ says that it has the message for good."""

_REDIS_SCHEMES = ("redis://", "rediss://", "redis+socket://", "sentinel://")


class Publisher:
    """Publishes messages to the broker at `broker_url`.

    Raises kombu's ``OperationalError`` when the broker cannot be reached within a few seconds.
    """

    def __init__(self, broker_url: str) -> None:
        self._celery = Celery("synapse-publisher", broker=broker_url, set_as_current=False)
        self._celery.conf.update(
            task_serializer="json",
            task_ignore_result=True,
            # A publisher has no worker's habits: no event per message, no result backend.
            task_send_sent_event=False,
            broker_connection_timeout=4,
            # Celery puts CELERY_BROKER_URL of the environment before the address that it is given.
            broker_write_url=broker_url,
        )
        if broker_url.startswith(_REDIS_SCHEMES):
            self._celery.conf.broker_transport_options = REDIS_TIMEOUTS
        else:
            # A RabbitMQ that is not asked says nothing, also when it is killed before it has the message.
            self._celery.conf.broker_transport_options = {"confirm_publish": True}
        if broker_url.startswith("rediss://"):
            # Stock kombu checks no certificate unless the URL says so, and would tell anybody the password.
            self._celery.conf.broker_use_ssl = {"ssl_cert_reqs": ssl.CERT_REQUIRED}

    def publish(self, message: Message) -> str:
        """Send `message` to its queue and return the id of the Celery task.

        Keys left at their default are not sent, so an older worker accepts what it knows.
        """
        kwargs = message.model_dump(mode="json", exclude_unset=True, by_alias=True)
        shown = {key: kwargs[key] for key in ("job", "plugin", "action") if key in kwargs}
        sent = self._celery.send_task(
            message.task,
            kwargs=kwargs,
            queue=message.queue,
            argsrepr="()",
            kwargsrepr=repr(shown),
            confirm_timeout=SECONDS_TO_CONFIRM,
        )
        return str(sent.id)

    def close(self) -> None:
        """Give the connections back."""
        self._celery.close()

    def __enter__(self) -> "Publisher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
