"""Queues that a RabbitMQ has already are not declared anew."""

from typing import Any

import pytest
from amqp.exceptions import NotFound
from celery import Celery
from kombu.transport import pyamqp

from shared import Publisher
from shared.rabbitmq import ExistingQueue


class Server:
    """The connection to a RabbitMQ that has these queues."""

    def __init__(self, *queues: str) -> None:
        self.queues = set(queues)
        self.declared: list[str] = []
        self.channels: list[Channel] = []

    def channel(self) -> "Channel":
        self.channels.append(Channel(self))
        return self.channels[-1]


class Channel(pyamqp.Channel):
    """A channel that is closed by the look for a queue which is not there."""

    def __init__(self, server: Server) -> None:
        self.connection, self.is_open = server, True

    def queue_declare(self, queue: str, passive: bool = False, **_: Any) -> tuple[str, int, int]:
        assert self.is_open
        if passive and queue not in self.connection.queues:
            self.is_open = False
            raise NotFound("no queue")
        if not passive:
            self.connection.declared.append(queue)
        return queue, 0, 0

    def close(self) -> None:
        self.is_open = False


@pytest.mark.parametrize(
    ("existing", "declared"), [(["deploy"], []), (["to_task"], ["deploy"]), ([], ["deploy"])]
)
def test_only_a_queue_that_is_missing_is_declared(existing: list[str], declared: list[str]) -> None:
    server = Server(*existing)

    ExistingQueue("deploy")(server.channel()).queue_declare()

    assert server.declared == declared
    # And no channel stays open beside the one that was there
    assert [channel.is_open for channel in server.channels] == [True, False]


def test_queues_of_publisher_and_worker_are_taken_as_they_are() -> None:
    worker = Celery("worker", broker="amqp://h//", amqp="worker.broker:AMQP", set_as_current=False)
    with Publisher("amqp://h//") as publisher:
        for app in (worker, publisher._celery):
            assert isinstance(app.amqp.queues["deploy.7"], ExistingQueue)
