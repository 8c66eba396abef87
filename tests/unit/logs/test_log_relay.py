"""The relay with scripted agents: to the end over any number of connections, under limits, one a log."""

import asyncio
from typing import Any

import pytest
from fakeredis import FakeAsyncRedis, FakeRedis

from tests.unit.logs.logs_helpers import Log, Logs, Tail, until
from worker.logs import relay, tailer
from worker.logs.subscriptions import OPEN, OWNERS
from worker.platform import (
    ClientConnectionError,
    ClientTimeoutError,
    NotFoundError,
    register_secrets,
)
from worker.platform.errors import StreamLimitExceededError

RAY = "raysubmit_1"
BROKEN = ClientConnectionError("the connection was lost")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(relay, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr("worker.logs.tailer.FIRST_SECONDS", 0.01)


async def test_log_is_followed_to_its_end(logs: Logs, log: Log, redis: FakeRedis) -> None:
    logs.agent.tails[RAY] = [Tail([["one", "two"], ["three"]], completed=True)]
    log.book(RAY)

    logs.relay()
    await until(log.is_over)

    assert log.lines() == ["one", "two", "three"]
    assert log.end()["reason"] == "ended"
    await until(lambda: not redis.zcard(OPEN) and not redis.hlen(OWNERS))


async def test_job_that_was_stopped_is_the_reason(logs: Logs, log: Log) -> None:
    logs.agent.tails[RAY] = [Tail([["one"]], completed=True)]
    logs.agent.statuses[RAY] = ["STOPPED"]
    log.book(RAY)

    logs.relay()
    await until(log.is_over)

    assert log.end()["reason"] == "stopped"


async def test_lost_connection_is_taken_up_again_behind_the_last_line(logs: Logs, log: Log) -> None:
    logs.agent.tails[RAY] = [
        Tail([["one", "two"], BROKEN]),
        Tail([BROKEN]),
        Tail([["one"], ["two", "three"], BROKEN]),
        Tail([["one", "two", "three", "four"]], completed=True),
    ]
    log.book(RAY)

    logs.relay()
    await until(log.is_over)

    assert log.lines() == ["one", "two", "three", "four"]


async def test_log_that_the_agent_merely_closed_is_read_once_more_when_the_job_is_over(
    logs: Logs, log: Log
) -> None:
    # Given an agent that says nothing at the end, and a job that ends between two connections
    logs.agent.tails[RAY] = [
        Tail([["one"]], rest="tw"),
        Tail([["one"]], rest="tw"),
        Tail([["one", "two"]], rest="half a line"),
    ]
    logs.agent.statuses[RAY] = ["RUNNING", "SUCCEEDED"]
    log.book(RAY)

    logs.relay()
    await until(log.is_over)

    # Then what stood behind the last line end is a line only when the job is over
    assert log.lines() == ["one", "two", "half a line"]


async def test_job_that_is_silent_for_long_is_not_out_of_reach(logs: Logs, log: Log) -> None:
    logs.agent.tails[RAY] = [Tail([ClientTimeoutError()])] * 5 + [Tail([["one"]], completed=True)]
    logs.agent.statuses[RAY] = ["RUNNING"]
    log.book(RAY)

    logs.relay(patience=0.01)
    await until(log.is_over)

    assert log.lines() == ["one"]
    assert log.end()["reason"] == "ended"


async def test_log_of_a_job_that_is_over_ends_though_the_agent_never_closes_it(logs: Logs, log: Log) -> None:
    logs.agent.tails[RAY] = [Tail([["one"], ClientTimeoutError()], rest="half a line")]
    logs.agent.statuses[RAY] = ["RUNNING", "SUCCEEDED"]
    log.book(RAY)

    logs.relay(patience=60)
    await until(log.is_over)

    assert log.lines() == ["one", "half a line"]
    assert log.end()["reason"] == "ended"


async def test_log_of_a_job_that_is_over_and_that_nobody_gives_ends_as_unreachable(
    logs: Logs, log: Log
) -> None:
    logs.agent.tails[RAY] = [Tail([ClientTimeoutError()])]
    log.book(RAY)

    logs.relay(patience=0.2)
    await until(log.is_over)

    assert log.end()["reason"] == "unreachable"


async def test_log_out_of_reach_for_too_long_ends_and_says_so(logs: Logs, log: Log) -> None:
    logs.agent.tails[RAY] = [Tail([["one"], BROKEN]), Tail([BROKEN])]
    log.book(RAY)

    logs.relay(patience=0.2)
    await until(log.is_over)

    assert log.lines() == [
        "one",
        f"The log of {RAY} is not followed further: it cannot be reached (the connection was lost).",
    ]
    assert log.history()[-2]["source"] == "relay"
    assert log.end()["reason"] == "unreachable"


async def test_log_of_an_unknown_job_is_given_up_sooner(
    logs: Logs, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tailer, "UNKNOWN_SECONDS", 0.05)
    logs.agent.tails[RAY] = [Tail([NotFoundError("404 Not Found")])]
    log.book(RAY)

    logs.relay(patience=3600)
    await until(log.is_over)

    assert log.end()["reason"] == "unreachable"


async def test_log_longer_than_the_stream_may_be_ends_with_that_reason(logs: Logs, log: Log) -> None:
    logs.agent.tails[RAY] = [Tail([["one", "two"], StreamLimitExceededError("too long")])]
    log.book(RAY)

    logs.relay()
    await until(log.is_over)

    assert log.lines()[:2] == ["one", "two"]
    assert log.end()["reason"] == "limit"


async def test_limit_of_lines_holds_for_all_logs_of_a_job(logs: Logs, log: Log) -> None:
    for name in ("a", "b"):
        logs.agent.tails[name] = [Tail([[name] * 6], completed=True)]
        log.book(name)

    logs.relay(max_lines=10)
    await until(log.is_over)

    assert sum(line in "ab" for line in log.lines()) == 10
    assert log.end()["reason"] == "limit"


async def test_secrets_in_a_relayed_line_are_masked_and_the_rest_is_left(logs: Logs, log: Log) -> None:
    register_secrets(["a-known-secret"])
    printed = "\x1b[31mred\x1b[0m 한국어 https://x/?q=1 Authorization: Bearer abc token=def a-known-secret"
    logs.agent.tails[RAY] = [Tail([[printed]], completed=True)]
    log.book(RAY)

    logs.relay()
    await until(log.is_over)

    assert log.lines() == ["\x1b[31mred\x1b[0m 한국어 https://x/?q=1 Authorization: *** token=*** ***"]


async def test_hundreds_of_logs_are_followed_at_once(logs: Logs, redis: FakeRedis) -> None:
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    for number in range(200):
        logs.agent.tails[f"r{number}"] = [Tail([["one"], wait, ["two"]], completed=True)]
        Log(redis, f"j{number}").book(f"r{number}")

    logs.relay()
    await until(lambda: len(logs.agent.opened) == 200)
    gate.set()
    await until(lambda: not redis.zcard(OPEN))

    assert {tuple(Log(redis, f"j{number}").lines()) for number in range(200)} == {("one", "two")}


async def test_two_relays_follow_a_log_once(logs: Logs, log: Log) -> None:
    async def wait() -> None:
        await asyncio.sleep(0.2)

    logs.agent.tails[RAY] = [Tail([["one"], wait, ["two"]], completed=True)]
    log.book(RAY)
    log.book(RAY)

    logs.relay()
    logs.relay()
    await until(log.is_over)

    assert logs.agent.opened == [RAY]
    assert log.lines() == ["one", "two"]


async def test_relay_that_stops_leaves_its_logs_to_the_others_at_once(logs: Logs, log: Log) -> None:
    # Given a relay that follows a log
    async def wait() -> None:
        await asyncio.sleep(3600)

    logs.agent.tails[RAY] = [Tail([["one"], wait]), Tail([["one", "two"]], completed=True)]
    log.book(RAY)
    first = logs.relay()
    await until(lambda: log.lines() == ["one"])

    # When it stops and another one starts
    first.cancel()
    logs.relay()

    # Then that one goes on long before the claim would have run out
    async with asyncio.timeout(relay.CLAIM_SECONDS / 2):
        await until(log.is_over)
    assert log.lines() == ["one", "two"]


async def test_relay_whose_claim_went_to_another_lets_go(logs: Logs, log: Log, redis: FakeRedis) -> None:
    left = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            left.set()

    logs.agent.tails[RAY] = [Tail([["one"], wait])]
    log.book(RAY)
    logs.relay()
    await until(lambda: log.lines() == ["one"])

    redis.hset(OWNERS, f"42/{RAY}", "another")

    await until(left.is_set)
    assert redis.hget(OWNERS, f"42/{RAY}") == "another"


async def test_lines_wait_while_redis_is_away(
    logs: Logs, log: Log, monkeypatch: pytest.MonkeyPatch, async_redis: FakeAsyncRedis
) -> None:
    # Given a Redis that fails the first calls that bring lines
    original, failures = async_redis.evalsha, [ConnectionError(), ConnectionError()]

    def evalsha(sha: str, keys: int, *args: Any) -> Any:
        if "relay" in args and failures:
            raise failures.pop()
        return original(sha, keys, *args)

    monkeypatch.setattr(async_redis, "evalsha", evalsha)
    logs.agent.tails[RAY] = [Tail([["one", "two"]], completed=True)]
    log.book(RAY)

    logs.relay()
    await until(log.is_over)

    assert log.lines() == ["one", "two"]
    assert not failures


async def test_scripts_that_redis_forgot_are_loaded_again(logs: Logs, log: Log, redis: FakeRedis) -> None:
    async def forget() -> None:
        await until(lambda: log.lines() == ["one"])
        redis.script_flush()

    logs.agent.tails[RAY] = [Tail([["one"], forget, ["two"]], completed=True)]
    log.book(RAY)

    logs.relay()
    await until(log.is_over)

    assert log.lines() == ["one", "two"]


async def test_slow_redis_holds_the_reader_up(logs: Logs, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a Redis that takes nothing, and a log without end
    given = 0

    async def one_more() -> None:
        nonlocal given
        given += 1

    monkeypatch.setattr("worker.logs.writer.Outlet.run", lambda _self: asyncio.sleep(3600))
    logs.agent.tails[RAY] = [Tail([step for _ in range(1000) for step in (["x"] * 10, one_more)])]
    log.book(RAY)

    # When it is followed with room for a hundred lines
    logs.relay(queue_size=100)
    await until(lambda: given >= 10)
    await asyncio.sleep(0.1)

    # Then no more is read than has room
    assert given <= 11
