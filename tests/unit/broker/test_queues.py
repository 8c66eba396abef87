"""Which messages wait, also in queues that nobody consumes."""

from typing import Any

import pytest
from redis.exceptions import NoPermissionError

from worker.broker.queues import waiting_messages


@pytest.mark.parametrize("keyprefix", ["", "staging:"])
def test_messages_are_counted_with_every_priority_and_delay(redis: Any, keyprefix: str) -> None:
    # Given messages without a queue, of an agent, with priorities, and delayed ones
    redis.lpush(f"{keyprefix}celery", "a", "b")
    redis.lpush(f"{keyprefix}deploy.7", "a")
    redis.lpush(f"{keyprefix}deploy.7\x06\x163", "a")
    redis.zadd(f"{keyprefix}synapse:broker:delayed:deploy.8", {"a": 1})
    redis.zadd(f"{keyprefix}synapse:broker:delayed:control", {"a": 1})
    # and what is no queue
    redis.lpush(f"{keyprefix}deploy.x", "a")
    redis.lpush("synapse:broker:tokens:deploy", "a")

    assert waiting_messages(redis, keyprefix) == {"celery": 2, "control": 1, "deploy.7": 2, "deploy.8": 1}


def test_user_without_rights_counts_what_it_may_read(redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise NoPermissionError

    redis.lpush("control", "a")
    monkeypatch.setattr(redis, "scan_iter", denied)

    assert waiting_messages(redis) == {"control": 1}


@pytest.mark.parametrize("keyprefix", ["", "staging:"])
def test_queues_that_nobody_knows_are_counted(redis: Any, keyprefix: str) -> None:
    # Given messages in a queue that a publisher has misspelt, and what Celery's remote control has left
    for name in ("to_tasks", "reply.celery.pidbox", "celeryev.1"):
        redis.sadd(f"{keyprefix}_kombu.binding.{name}", f"{name}\x06\x16\x06\x16{name}")
        redis.lpush(f"{keyprefix}{name}", "a", "b")
    redis.zadd(f"{keyprefix}_kombu.binding_deadlines", {"x": 1})
    redis.set(f"{keyprefix}_kombu.binding.odd", "x")

    assert waiting_messages(redis, keyprefix) == {"to_tasks": 2}
