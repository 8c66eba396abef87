"""The messages of all queues in what a worker answers to `inspect stats`, where Flower shows them."""

from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from worker.monitoring import redis_metrics
from worker.monitoring.redis_metrics import Queues, QueueStatsStep


@pytest.fixture
def step(redis: Any, monkeypatch: pytest.MonkeyPatch) -> QueueStatsStep:
    monkeypatch.setattr(redis_metrics, "settings", lambda: None)
    monkeypatch.setattr(redis_metrics, "queues_of", lambda _: Queues(redis, ["deploy", "logs"]))
    return QueueStatsStep(SimpleNamespace())


def test_waiting_delayed_and_held_messages_are_counted(step: QueueStatsStep, redis: Any) -> None:
    redis.lpush("deploy", "a", "b")
    redis.lpush("deploy\x06\x163", "c")
    redis.zadd("synapse:broker:delayed:logs", {"d": 1})
    redis.hset("synapse:broker:held", "tag", "e")

    assert step.info(None) == {
        "messages_waiting": {"deploy": 3, "logs": 0},
        "messages_delayed": {"deploy": 0, "logs": 1},
        "messages_held": 1,
    }


def test_stats_without_redis_lack_the_messages(
    step: QueueStatsStep, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise RedisConnectionError("away")

    monkeypatch.setattr(redis, "pipeline", away)

    assert step.info(None) == {}


def test_connections_that_others_use_stay_open(redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given two threads that ask, such as those of two monitors, one of which is not yet answered
    closed: list[str] = []
    pool = redis.connection_pool
    busy, idle = pool.get_connection(), pool.get_connection()
    pool.release(idle)
    monkeypatch.setattr(busy, "disconnect", lambda *_: closed.append("busy"))
    monkeypatch.setattr(idle, "disconnect", lambda *_: closed.append("idle"))

    # When the other one has its answer
    Queues(redis, ["deploy"]).stats()

    # Then its connection alone is closed
    assert closed == ["idle"]
    pool.release(busy)


def test_queues_of_rabbitmq_are_counted_by_rabbitmq(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SimpleNamespace(broker_url="amqp://rabbit//", worker_agent=None)
    monkeypatch.setattr(redis_metrics, "settings", lambda: settings)

    assert QueueStatsStep(SimpleNamespace()).info(None) == {}
