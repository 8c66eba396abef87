"""What is acknowledged: fetched, renewed, given back and acknowledged by scripts, by Redis's clock."""

import json
import time
from types import SimpleNamespace
from typing import Any, cast

import fakeredis
import pytest

from worker.broker.delivery import (
    PendingAcks,
    Unacked,
    mark_redelivered,
    pending_acks_of,
    redelivery_key,
    unacked_key,
)
from worker.broker.transport import FETCH_SCRIPT, Channel

MESSAGE = json.dumps({"headers": {}, "properties": {"delivery_info": {}}, "body": "é"}).encode()


@pytest.fixture
def redis() -> fakeredis.FakeRedis:
    return fakeredis.FakeRedis()


@pytest.fixture
def unacked(redis: fakeredis.FakeRedis) -> Unacked:
    return Unacked(redis)


def fetch(redis: Any, tag: str, *lists: str, seconds: float = 60, acknowledged: str = "1") -> Any:
    return redis.eval(
        FETCH_SCRIPT,
        2 + len(lists),
        unacked_key(),
        redelivery_key(),
        *lists,
        tag,
        seconds,
        *[acknowledged] * len(lists),
    )


def test_fetch_pops_from_the_first_list_that_has_a_message(redis: Any) -> None:
    redis.lpush("b", "older", "newer")
    assert fetch(redis, "1", "a", "b") == [b"b", b"older"]
    assert fetch(redis, "2", "a", "b") == [b"b", b"newer"]
    assert fetch(redis, "3", "a", "b") is None
    assert redis.hgetall(unacked_key()) == {b"1": b"b\nolder", b"2": b"b\nnewer"}
    assert abs(redis.zscore(redelivery_key(), "1") - time.time() - 60) < 5


def test_fetch_without_acknowledgement_records_nothing(redis: Any) -> None:
    redis.lpush("a", "x")
    assert fetch(redis, "1", "a", acknowledged="0") == [b"a", b"x"]
    assert redis.keys() == []


def test_acknowledged_message_is_deleted(redis: Any, unacked: Unacked) -> None:
    redis.lpush("a", MESSAGE)
    fetch(redis, "1", "a")
    unacked.remove("1")
    assert redis.keys() == []


def test_requeued_message_is_next_or_last_and_marked(redis: Any, unacked: Unacked) -> None:
    redis.lpush("a", MESSAGE, MESSAGE, "waits")
    fetch(redis, "1", "a")
    fetch(redis, "2", "a")
    assert unacked.requeue(["1", "gone"]) == 1
    assert unacked.requeue(["2"], last=True) == 1
    assert unacked.requeue(["1", "2"]) == 0, "only one requeues it"
    last, waits, following = redis.lrange("a", 0, -1)
    assert waits == b"waits"
    for text in (last, following):
        message = json.loads(text)
        assert message["headers"]["redelivered"]
        assert message["properties"]["delivery_info"]["redelivered"]
    assert not redis.exists(unacked_key(), redelivery_key())


def test_only_overdue_messages_are_requeued(redis: Any, unacked: Unacked) -> None:
    for _ in range(250):
        redis.lpush("a", MESSAGE)
    for tag in range(250):
        fetch(redis, str(tag), "a", seconds=-1 if tag < 220 else 60)
    assert unacked.requeue_overdue() == 220
    assert redis.llen("a") == 220
    assert redis.hlen(unacked_key()) == redis.zcard(redelivery_key()) == 30


def test_extended_message_is_not_overdue(redis: Any, unacked: Unacked) -> None:
    redis.lpush("a", MESSAGE)
    fetch(redis, "1", "a", seconds=-1)
    unacked.extend(["1", "acknowledged"], 60)
    assert unacked.requeue_overdue() == 0
    assert redis.zrange(redelivery_key(), 0, -1) == [b"1"]


def test_acknowledging_one_delivery_leaves_the_other(redis: Any, unacked: Unacked) -> None:
    redis.lpush("a", MESSAGE)
    fetch(redis, "first", "a", seconds=-1)
    unacked.requeue_overdue()
    fetch(redis, "second", "a")
    unacked.remove("first")
    assert redis.hkeys(unacked_key()) == redis.zrange(redelivery_key(), 0, -1) == [b"second"]


def test_tag_without_a_message_is_removed(redis: Any, unacked: Unacked) -> None:
    redis.zadd(redelivery_key(), {"orphan": 1})
    assert unacked.requeue_overdue() == 0
    assert not redis.exists(redelivery_key())


def test_element_that_is_no_message_is_requeued_unchanged() -> None:
    for text in (b"oops", b"[]", b"\xff", b'{"headers": 1}', b"[" * 100_000):
        assert mark_redelivered(text) == text


def test_pending_acks_are_flushed_once_in_order(unacked: Unacked) -> None:
    pending, run = PendingAcks(), []
    pending.add(lambda _: run.append(1))
    pending.add(lambda _: run.append(2))
    pending.flush(unacked)
    pending.flush(unacked)
    assert run == [1, 2]


def test_ack_that_fails_stays_pending(unacked: Unacked) -> None:
    pending, unavailable = PendingAcks(), [True]

    def command(_: Unacked) -> None:
        if unavailable[0]:
            raise ConnectionError

    pending.add(command)
    with pytest.raises(ConnectionError):
        pending.flush(unacked)
    unavailable[0] = False
    pending.flush(unacked)
    assert len(pending) == 0


def test_pending_acks_belong_to_a_broker() -> None:
    assert pending_acks_of("h", 1, "/0") is pending_acks_of("h", 1, "/0")
    assert pending_acks_of("h", 1, "/0") is not pending_acks_of("h", 1, "/1")


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("away"),
        ValueError("I/O operation on closed file."),
        AttributeError("'NoneType' object has no attribute 'readline'"),
    ],
)
def test_ack_amid_which_its_connection_is_closed_is_deferred(unacked: Unacked, error: Exception) -> None:
    # Given a channel whose connections the consumer closes while another thread acknowledges
    pending, run = PendingAcks(), []
    channel = SimpleNamespace(closed=False, unacked=unacked, pending_acks=pending)

    def acknowledge(_: Unacked) -> None:
        run.append(1)
        if len(run) == 1:
            raise error

    Channel.run_or_defer(cast(Channel, channel), acknowledge)

    # Then the acknowledgement is not lost
    pending.flush(unacked)
    assert run == [1, 1]
