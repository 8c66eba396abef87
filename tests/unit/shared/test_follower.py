"""Followers of a log: history and live as one row, to the end."""

import asyncio
import threading

import pytest
from fakeredis import FakeAsyncRedis, FakeRedis, FakeServer
from redis.exceptions import ConnectionError as RedisConnectionError

from shared import follower as log_follower
from shared.channels import events_channel, job_key, logs_history
from shared.follower import AsyncLogFollower, LogFollower, RunEvent, follow_run


def add(redis: FakeRedis, *numbers: int, generation: int = 0) -> None:
    for number in numbers:
        fields = {"seq": number, "time": "t", "source": "run", "level": "info", "line": f"line {number}"}
        redis.xadd(logs_history("42"), fields, id=f"{number}-{generation}")


def end(redis: FakeRedis, number: int) -> None:
    redis.xadd(logs_history("42"), {"seq": number, "type": "end", "reason": "ended"}, id=f"{number}-0")


def test_history_of_an_ended_log_is_read_whole(redis: FakeRedis) -> None:
    add(redis, *range(1, 1201))
    end(redis, 1201)
    follower = LogFollower(redis, "42")

    assert [line.seq for line in follower] == list(range(1, 1201))
    assert (follower.seq, follower.reason) == (1201, "ended")


def test_follower_joins_history_and_new_lines(redis: FakeRedis) -> None:
    # Given a log with lines, and a follower of it
    add(redis, 1, 2)
    follower = LogFollower(redis, "42")
    seen: list[int] = []
    started = threading.Event()

    def follow() -> None:
        for line in follower:
            seen.append(line.seq)
            started.set()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    assert started.wait(5)

    # When more lines come, and the end
    add(redis, *range(3, 50))
    end(redis, 50)

    # Then it has every line once and ends by itself
    thread.join(10)
    assert not thread.is_alive()
    assert seen == list(range(1, 50))


def test_follower_continues_after_a_number(redis: FakeRedis) -> None:
    add(redis, 1, 2, 3)
    end(redis, 4)

    assert [line.seq for line in LogFollower(redis, "42", after=2)] == [3]


def test_follower_reads_the_log_of_its_prefix_alone(redis: FakeRedis) -> None:
    add(redis, 1, 2)
    end(redis, 3)
    fields = {"seq": 1, "type": "end", "reason": "stopped"}
    redis.xadd(logs_history("42", prefix="staging"), fields, id="1-0")

    follower = LogFollower(redis, "42", prefix="staging")

    assert [line.seq for line in follower] == []
    assert follower.reason == "stopped"


def test_run_of_another_installation_is_not_heard() -> None:
    # Given two installations on two databases of one Redis, whose channels no database separates
    server = FakeServer()
    redis, other = (FakeRedis(server=server, db=db, decode_responses=True) for db in (0, 1))
    events = follow_run(redis, "42", prefix="first")
    assert next(events) == RunEvent("state", {"status": "PENDING"})

    # When the other publishes the end of a job of the same id, and then this one does
    other.publish(events_channel("42", prefix="second"), '{"type": "state", "status": "FAILED"}')
    redis.publish(events_channel("42", prefix="first"), '{"type": "state", "status": "SUCCEEDED"}')

    # Then only this one's is heard
    assert list(events) == [RunEvent("state", {"status": "SUCCEEDED"})]


@pytest.mark.parametrize(
    "published",
    ["no JSON", "[" * 100_000, "3", "{}", '{"type": "state"}', '{"type": "state", "status": "DONE"}'],
)
def test_what_is_no_event_is_skipped(redis: FakeRedis, published: str) -> None:
    # Given a run that is followed
    events = follow_run(redis, "42")
    next(events)

    # When somebody publishes something else on its channel, and its worker the end
    redis.publish(events_channel("42"), published)
    redis.publish(events_channel("42"), '{"type": "state", "status": "SUCCEEDED"}')

    # Then the end is heard
    assert list(events) == [RunEvent("state", {"status": "SUCCEEDED"})]


def test_run_is_read_under_its_prefix(redis: FakeRedis) -> None:
    redis.hset(job_key("42", prefix="staging"), mapping={"status": "RUNNING", "step": "annotate"})

    events = follow_run(redis, "42", prefix="staging")

    assert next(events).content == {"status": "RUNNING", "step": "annotate"}


def test_withdrawn_end_leaves_no_gap(redis: FakeRedis) -> None:
    add(redis, 1)
    add(redis, 2, 3, generation=1)
    end(redis, 4)

    assert [line.seq for line in LogFollower(redis, "42", after=1)] == [2, 3]


def test_read_is_retried_when_redis_is_unavailable(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    add(redis, 1)
    end(redis, 2)
    original, failures = redis.xread, iter([True, True])

    def xread(**question: object) -> object:
        if next(failures, False):
            raise RedisConnectionError
        return original(**question)

    monkeypatch.setattr(redis, "xread", xread)

    assert [line.line for line in LogFollower(redis, "42")] == ["line 1"]


def test_redis_that_stays_unavailable_is_an_error(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    def xread(**question: object) -> object:
        raise RedisConnectionError

    monkeypatch.setattr(log_follower, "MAX_UNAVAILABLE_SECONDS", 0)
    monkeypatch.setattr(redis, "xread", xread)

    with pytest.raises(RedisConnectionError):
        list(LogFollower(redis, "42"))


async def test_asynchronous_follower_does_the_same() -> None:
    server = FakeServer()
    redis = FakeRedis(server=server, decode_responses=True)
    add(redis, 1, 2)
    async with FakeAsyncRedis(server=server, decode_responses=True) as asynchronous:
        follower = AsyncLogFollower(asynchronous, "42")
        seen = []
        async with asyncio.timeout(10):
            async for line in follower:
                seen.append(line.seq)
                if line.seq == 2:
                    add(redis, 3)
                    end(redis, 4)

    assert seen == [1, 2, 3]
    assert follower.reason == "ended"
