"""What `doctor` says where RabbitMQ is the broker: of the user's rights, and of the Redis of the runs."""

from types import SimpleNamespace
from typing import Any

from amqp.exceptions import ChannelError, NotFound, PreconditionFailed, error_for_code
from fakeredis import FakeRedis

from worker.broker.keys import unacked_key
from worker.cli.checks.rabbitmq_check import left_in_redis, missing_rights


class FakeChannel:
    """As much of a channel as the check needs. Its RabbitMQ has no queue, or all of them have crashed."""

    def __init__(self, denied: str) -> None:
        self._denied = denied

    def queue_declare(self, queue: str, *, passive: bool = False, **_: Any) -> None:
        if passive:
            raise NotFound(f"queue '{queue}' has crashed and failed to restart")
        if queue == self._denied:
            raise error_for_code(403, f"no access to queue '{queue}'", (50, 10), ChannelError)
        raise PreconditionFailed("invalid type 'signedint' for arg 'x-dead-letter-exchange'")

    def queue_delete(self, queue: str, **_: Any) -> None:
        raise AssertionError(f"{queue} is deleted, with its messages if it has crashed")

    def queue_unbind(self, *_: Any) -> None:
        pass

    def prepare_message(self, *_: Any, **__: Any) -> None:
        pass

    basic_publish = basic_qos = close = prepare_message


def rights_missing(denied: str = "") -> list[str]:
    connection: Any = SimpleNamespace(channel=lambda: FakeChannel(denied))
    return [finding.text.partition(":")[0] for finding in missing_rights(connection)]


def test_no_queue_is_deleted_to_ask_for_a_right() -> None:
    assert rights_missing() == []


def test_a_queue_that_may_not_be_declared_is_named() -> None:
    assert rights_missing(denied="annotate") == ["the user lacks the right to configure annotate"]


def test_nothing_is_said_of_empty_queues(redis: FakeRedis) -> None:
    assert list(left_in_redis(redis)) == []


def test_messages_left_by_an_earlier_broker_are_named(redis: FakeRedis) -> None:
    # Given messages in a worker's queues and in somebody else's, and one that a dead worker held
    redis.rpush("deploy", "a", "b")
    redis.rpush("celery", "c")
    redis.hset(unacked_key(), "tag", "d")

    found = list(left_in_redis(redis))

    assert [each.text.partition(":")[0] for each in found] == [
        "2 messages lie in deploy of the Redis of REDIS_URL",
        "1 message lies unacknowledged in the Redis of REDIS_URL",
    ]
    assert not any(each.is_error for each in found)
