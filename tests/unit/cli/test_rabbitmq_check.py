"""What `doctor` says of the Redis of the runs where RabbitMQ is the broker."""

from fakeredis import FakeRedis

from worker.broker.keys import unacked_key
from worker.cli.checks.rabbitmq_check import left_in_redis


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
