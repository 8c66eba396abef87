"""The broker of the tests of a session: a Redis, or with `pytest --broker=rabbitmq` a RabbitMQ."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from redis import Redis

from tests.harness.rabbitmq import RabbitMQ, VirtualHost
from worker.broker.keys import delayed_key, redelivery_key, unacked_key


class Queues(Protocol):
    """What tests look up in a broker."""

    url: str

    def put(self, queue: str, text: str) -> None:
        """Put a text into a queue, which is no message of Celery's."""

    def message_count(self, queues: Iterable[str]) -> int:
        """Messages in these queues, and those that a worker has not acknowledged."""

    def waiting_count(self, queue: str) -> int:
        """Messages of a queue that no worker has."""

    def delete_messages(self, queues: Iterable[str]) -> None:
        """Delete all messages, also delayed ones and those that an ended worker has not acknowledged."""


class RedisQueues:
    """The queues of a Redis database."""

    def __init__(self, url: str, redis: Redis) -> None:
        self.url, self._redis = url, redis

    def put(self, queue: str, text: str) -> None:
        self._redis.lpush(queue, text)

    def message_count(self, queues: Iterable[str]) -> int:
        # All at once: what a dead worker held moves to its queue meanwhile, and would be in neither.
        with self._redis.pipeline() as pipeline:
            for queue in queues:
                pipeline.llen(queue)
            return sum(pipeline.hlen(unacked_key()).execute())

    def waiting_count(self, queue: str) -> int:
        return int(self._redis.llen(queue))

    def delete_messages(self, queues: Iterable[str]) -> None:
        queues = tuple(queues)
        self._redis.delete(*queues, *map(delayed_key, queues), unacked_key(), redelivery_key())


class SessionBroker:
    """One node of RabbitMQ for all tests of the session that use it, which starts with the first of them."""

    def __init__(self) -> None:
        self.is_rabbitmq = False
        """Whether that is the broker of all tests, and not only of those about it."""
        self._node: RabbitMQ | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._virtual_hosts: dict[str, VirtualHost] = {}

    @property
    def node(self) -> RabbitMQ:
        if self._node is None:
            self._folder = tempfile.TemporaryDirectory(prefix="rabbitmq-", ignore_cleanup_errors=True)
            self._node = RabbitMQ(Path(self._folder.name))
            self._node.start()
        return self._node

    def new_url(self) -> str | None:
        """The URL of a new virtual host; None where the broker is the Redis of the runs."""
        if not self.is_rabbitmq:
            return None
        virtual_host = self.node.new_virtual_host()
        self._virtual_hosts[virtual_host.url] = virtual_host
        return virtual_host.url

    def queues(self, url: str, redis: Redis) -> Queues:
        """The queues behind this URL, which is of `new_url` or of the Redis of the runs."""
        return self._virtual_hosts.get(url) or RedisQueues(url, redis)

    def close(self) -> None:
        """End the node."""
        if self._node is not None and self._folder is not None:
            self._node.kill()
            self._folder.cleanup()
            self._node = None


session_broker = SessionBroker()
