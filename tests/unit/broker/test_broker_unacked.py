"""What is held: fetched, renewed, given back and acknowledged by scripts, by Redis's clock."""

import json
import time
from typing import Any

import fakeredis
import pytest

from worker.broker.delivery import DUE_KEY, HELD_KEY, Debts, Unacked, debts_of, marked
from worker.broker.transport import FETCH

MESSAGE = json.dumps({"headers": {}, "properties": {"delivery_info": {}}, "body": "é"}).encode()


@pytest.fixture
def redis() -> fakeredis.FakeRedis:
    return fakeredis.FakeRedis()


@pytest.fixture
def unacked(redis: fakeredis.FakeRedis) -> Unacked:
    return Unacked(redis)


def fetch(redis: Any, tag: str, *lists: str, seconds: float = 60, held: str = "1") -> Any:
    return redis.eval(FETCH, 2 + len(lists), HELD_KEY, DUE_KEY, *lists, tag, seconds, *[held] * len(lists))


def test_fetch_takes_from_the_first_list_that_has_one(redis: Any) -> None:
    redis.lpush("b", "older", "newer")
    assert fetch(redis, "1", "a", "b") == [b"b", b"older"]
    assert fetch(redis, "2", "a", "b") == [b"b", b"newer"]
    assert fetch(redis, "3", "a", "b") is None
    assert redis.hgetall(HELD_KEY) == {b"1": b"b\nolder", b"2": b"b\nnewer"}
    assert abs(redis.zscore(DUE_KEY, "1") - time.time() - 60) < 5


def test_fetch_without_acknowledgement_holds_nothing(redis: Any) -> None:
    redis.lpush("a", "x")
    assert fetch(redis, "1", "a", held="0") == [b"a", b"x"]
    assert redis.keys() == []


def test_acknowledged_is_gone(redis: Any, unacked: Unacked) -> None:
    redis.lpush("a", MESSAGE)
    fetch(redis, "1", "a")
    unacked.remove("1")
    assert redis.keys() == []


def test_given_back_is_next_or_last_and_marked(redis: Any, unacked: Unacked) -> None:
    redis.lpush("a", MESSAGE, MESSAGE, "waits")
    fetch(redis, "1", "a")
    fetch(redis, "2", "a")
    assert unacked.give_back(["1", "gone"]) == 1
    assert unacked.give_back(["2"], last=True) == 1
    assert unacked.give_back(["1", "2"]) == 0, "only one gives it back"
    last, waits, following = redis.lrange("a", 0, -1)
    assert waits == b"waits"
    for text in (last, following):
        message = json.loads(text)
        assert message["headers"]["redelivered"]
        assert message["properties"]["delivery_info"]["redelivered"]
    assert not redis.exists(HELD_KEY, DUE_KEY)


def test_only_what_is_due_is_given_back(redis: Any, unacked: Unacked) -> None:
    for _ in range(250):
        redis.lpush("a", MESSAGE)
    for tag in range(250):
        fetch(redis, str(tag), "a", seconds=-1 if tag < 220 else 60)
    assert unacked.give_back_overdue() == 220
    assert redis.llen("a") == 220
    assert redis.hlen(HELD_KEY) == redis.zcard(DUE_KEY) == 30


def test_renewed_is_not_due(redis: Any, unacked: Unacked) -> None:
    redis.lpush("a", MESSAGE)
    fetch(redis, "1", "a", seconds=-1)
    unacked.renew(["1", "acknowledged"], 60)
    assert unacked.give_back_overdue() == 0
    assert redis.zrange(DUE_KEY, 0, -1) == [b"1"]


def test_the_first_copys_acknowledgement_leaves_the_second(redis: Any, unacked: Unacked) -> None:
    redis.lpush("a", MESSAGE)
    fetch(redis, "first", "a", seconds=-1)
    unacked.give_back_overdue()
    fetch(redis, "second", "a")
    unacked.remove("first")
    assert redis.hkeys(HELD_KEY) == redis.zrange(DUE_KEY, 0, -1) == [b"second"]


def test_a_tag_without_its_message_is_cleared_away(redis: Any, unacked: Unacked) -> None:
    redis.zadd(DUE_KEY, {"orphan": 1})
    assert unacked.give_back_overdue() == 0
    assert not redis.exists(DUE_KEY)


def test_what_is_no_message_goes_back_as_it_came() -> None:
    for text in (b"oops", b"[]", b"\xff", b'{"headers": 1}', b"[" * 100_000):
        assert marked(text) == text


def test_debts_are_paid_in_order_once(unacked: Unacked) -> None:
    debts, told = Debts(), []
    debts.add(lambda _: told.append(1))
    debts.add(lambda _: told.append(2))
    debts.pay(unacked)
    debts.pay(unacked)
    assert told == [1, 2]


def test_a_debt_that_cannot_be_paid_stays(unacked: Unacked) -> None:
    debts, away = Debts(), [True]

    def debt(_: Unacked) -> None:
        if away[0]:
            raise ConnectionError

    debts.add(debt)
    with pytest.raises(ConnectionError):
        debts.pay(unacked)
    away[0] = False
    debts.pay(unacked)
    assert len(debts) == 0


def test_debts_belong_to_a_broker() -> None:
    assert debts_of("h", 1, "/0") is debts_of("h", 1, "/0")
    assert debts_of("h", 1, "/0") is not debts_of("h", 1, "/1")
