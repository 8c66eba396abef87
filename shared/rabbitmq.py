"""Queues that a RabbitMQ has already are used as they are, with the arguments that its operator gave them."""

from typing import Any

from celery.app import amqp
from kombu import Queue
from kombu.transport import pyamqp


class ExistingQueue(Queue):
    """A queue that is declared only where it does not exist.

    RabbitMQ closes the channel of whoever declares a queue with other arguments than it has, such as a
    queue that its operator has declared with `x-max-priority`.
    """

    def declare(self, nowait: bool = False, channel: Any = None) -> Any:
        """Declare the queue, its exchange and their binding unless the queue exists.

        A message is published to a queue by its name, which needs neither of these: so a user without the
        right to configure, or to read, can publish to a queue that exists.

        Args:
            nowait: Do not wait for the reply.
            channel: The channel; by default the one to which the queue is bound.

        Returns:
            Its name.
        """
        channel = channel or self.channel
        if isinstance(channel, pyamqp.Channel) and self._exists(channel.connection):
            return self.name
        return super().declare(nowait=nowait, channel=channel)

    def queue_declare(self, nowait: bool = False, passive: bool = False, channel: Any = None) -> Any:
        """Declare the queue unless it exists.

        Args:
            nowait: Do not wait for the reply.
            passive: Do not declare it in any case.
            channel: The channel; by default the one to which the queue is bound.

        Returns:
            Its name, messages and consumers, or None when nothing is declared.
        """
        channel = channel or self.channel
        if not passive and isinstance(channel, pyamqp.Channel) and self._exists(channel.connection):
            return None
        return super().queue_declare(nowait=nowait, passive=passive, channel=channel)

    def _exists(self, connection: Any) -> bool:
        # On a channel of its own, which RabbitMQ closes when there is no such queue.
        channel = connection.channel()
        try:
            super().queue_declare(passive=True, channel=channel)
        except pyamqp.Connection.channel_errors:
            return False
        channel.close()
        return True


class Queues(amqp.Queues):
    """The queues of an application; those that it does not name are used as they are, too."""

    def new_missing(self, name: str) -> ExistingQueue:
        """Make a queue for a name.

        Args:
            name: The name.

        Returns:
            The queue.
        """
        made = super().new_missing(name)
        return ExistingQueue(name, made.exchange, name, queue_arguments=made.queue_arguments)
