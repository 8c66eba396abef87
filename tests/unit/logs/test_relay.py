"""Relays share the logs: each log is tailed by one relay at a time, and none is lost."""

import asyncio

import pytest
from fakeredis import FakeAsyncRedis, FakeRedis

from tests.unit.logs.relay_harness import LogOfJob, RelayHarness, ScriptedTail, until
from worker.logs import relay
from worker.logs.subscriptions import ClaimStore, log_owners_key
from worker.runs.keys import open_logs_key

RAY = "raysubmit_1"


async def test_hundreds_of_logs_are_tailed_at_once(harness: RelayHarness, redis: FakeRedis) -> None:
    gate = asyncio.Event()

    async def wait() -> None:
        await gate.wait()

    for number in range(200):
        harness.source.tails[f"r{number}"] = [ScriptedTail([["one"], wait, ["two"]], completed=True)]
        LogOfJob(redis, f"j{number}").subscribe(f"r{number}")

    harness.start_relay()
    await until(lambda: len(harness.source.opened) == 200)
    gate.set()
    await until(lambda: not redis.zcard(open_logs_key()))

    assert {tuple(LogOfJob(redis, f"j{number}").lines()) for number in range(200)} == {("one", "two")}


@pytest.mark.parametrize("damaged", [b"42/\xff", b"rubbish"], ids=repr)
async def test_a_damaged_subscription_is_removed(
    async_redis: FakeAsyncRedis, redis: FakeRedis, damaged: bytes
) -> None:
    # Given a subscription that no release writes, and another one
    redis.zadd(open_logs_key(), {damaged: 0, f"42/{RAY}": 0})
    store = ClaimStore(async_redis, 60)

    # When a relay looks for what it may tail
    claims = await store.acquire(10)

    # Then it has the other one, and nobody finds the damaged one again
    assert [claim.subscription.name for claim in claims] == [f"42/{RAY}"]
    assert redis.zrange(open_logs_key(), 0, -1) == redis.hkeys(log_owners_key()) == [f"42/{RAY}"]


async def test_two_relays_tail_a_log_once(harness: RelayHarness, job_log: LogOfJob) -> None:
    async def wait() -> None:
        # The time in which the second relay could tail the log, too.
        await asyncio.sleep(0.2)

    harness.source.tails[RAY] = [ScriptedTail([["one"], wait, ["two"]], completed=True)]
    job_log.subscribe(RAY)
    job_log.subscribe(RAY)

    harness.start_relay()
    harness.start_relay()
    await until(job_log.is_closed)

    assert harness.source.opened == [RAY]
    assert job_log.lines() == ["one", "two"]


async def test_stopped_relay_releases_its_logs_at_once(harness: RelayHarness, job_log: LogOfJob) -> None:
    # Given a relay that tails a log
    async def wait() -> None:
        await asyncio.sleep(3600)

    harness.source.tails[RAY] = [
        ScriptedTail([["one"], wait]),
        ScriptedTail([["one", "two"]], completed=True),
    ]
    job_log.subscribe(RAY)
    first = harness.start_relay()
    await until(lambda: job_log.lines() == ["one"])

    # When it stops and another one starts
    first.cancel()
    harness.start_relay()

    # Then the other one continues long before the claim would have expired
    async with asyncio.timeout(relay.CLAIM_TTL_SECONDS / 2):
        await until(job_log.is_closed)
    assert job_log.lines() == ["one", "two"]


@pytest.fixture
def no_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Relays look for something to claim once at their start, and later only when they are woken."""
    monkeypatch.setattr(relay, "POLL_INTERVAL_SECONDS", 3600)


@pytest.mark.usefixtures("no_polls")
async def test_idle_relay_is_woken_by_a_subscription(harness: RelayHarness, job_log: LogOfJob) -> None:
    # Given a relay that has tailed a log to its end, and waits
    for ray_job in ("first", "second"):
        harness.source.tails[ray_job] = [ScriptedTail([[ray_job]], completed=True)]
    job_log.subscribe("first")
    harness.start_relay()
    await until(lambda: job_log.lines() == ["first"])

    # When another log is subscribed to
    job_log.subscribe("second")

    # Then it is tailed at once
    async with asyncio.timeout(10):
        await until(lambda: len(job_log.lines()) == 2)
    assert job_log.lines() == ["first", "second"]


@pytest.mark.usefixtures("no_polls")
async def test_stopped_relay_wakes_another_one(
    harness: RelayHarness, job_log: LogOfJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a relay that tails as many logs as it may, and one that waits
    waiting = asyncio.Event()
    wait_for_subscriptions = ClaimStore.wait_for_subscriptions

    async def wait(store: ClaimStore, seconds: float) -> None:
        waiting.set()
        await wait_for_subscriptions(store, seconds)

    async def forever() -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(relay, "MAX_LOGS", 1)
    monkeypatch.setattr(ClaimStore, "wait_for_subscriptions", wait)
    tails = [ScriptedTail([["one"], forever]), ScriptedTail([["one", "two"]], completed=True)]
    harness.source.tails[RAY] = tails
    first = harness.start_relay()
    await waiting.wait()
    job_log.subscribe(RAY)
    await until(lambda: job_log.lines() == ["one"])
    waiting.clear()
    harness.start_relay()
    await waiting.wait()

    # When the first one stops
    first.cancel()

    # Then the log is continued at once
    async with asyncio.timeout(10):
        await until(lambda: job_log.lines() == ["one", "two"])


async def test_relay_that_lost_its_claim_stops_the_tail(
    harness: RelayHarness, job_log: LogOfJob, redis: FakeRedis
) -> None:
    cancelled = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    harness.source.tails[RAY] = [ScriptedTail([["one"], wait])]
    job_log.subscribe(RAY)
    harness.start_relay()
    await until(lambda: job_log.lines() == ["one"])

    redis.hset(log_owners_key(), f"42/{RAY}", "another")

    await until(cancelled.is_set)
    assert redis.hget(log_owners_key(), f"42/{RAY}") == "another"


async def test_a_relay_that_was_held_up_keeps_its_own_claims(
    harness: RelayHarness, job_log: LogOfJob, redis: FakeRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a relay that tails a log, and that has not come to renew its claims
    async def wait() -> None:
        await asyncio.sleep(3600)

    monkeypatch.setattr(relay, "RENEW_INTERVAL_SECONDS", 3600)
    harness.source.tails[RAY] = [ScriptedTail([["one"], wait])]
    job_log.subscribe(RAY)
    harness.start_relay()
    await until(lambda: job_log.lines() == ["one"])
    token = redis.hget(log_owners_key(), f"42/{RAY}")

    # When they have expired between two looks for logs that nobody tails
    has_expired = asyncio.Event()

    async def expire(_store: ClaimStore, _seconds: float) -> None:
        if not has_expired.is_set():
            monkeypatch.setattr(relay, "CLAIM_TTL_SECONDS", 0)
            redis.zadd(open_logs_key(), {f"42/{RAY}": 0})
            has_expired.set()
        await asyncio.sleep(0)

    monkeypatch.setattr(ClaimStore, "wait_for_subscriptions", expire)
    await until(lambda: has_expired.is_set() and redis.zscore(open_logs_key(), f"42/{RAY}"))

    # Then it has renewed them, and reads no log anew
    assert redis.hget(log_owners_key(), f"42/{RAY}") == token
