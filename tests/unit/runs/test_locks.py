"""A lock has one holder, is renewed while it is held, and is released."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
from fakeredis import FakeRedis
from redis.exceptions import ConnectionError as RedisConnectionError

from worker.runs.locks import Locks
from worker.runs.model import Lease

Eventually = Callable[[Callable[[], object]], None]


def test_lease_is_renewed_while_held(redis: FakeRedis, eventually: Eventually) -> None:
    locks = Locks(redis, 0.6)
    locks.acquire("lock", "me")
    with locks.hold(Lease("lock", "me")):
        redis.pexpire("lock", 60_000)
        eventually(lambda: redis.pttl("lock") <= 600)

    assert not redis.exists("lock")


def test_lease_is_renewed_also_when_it_follows_another_at_once(
    redis: FakeRedis, eventually: Eventually
) -> None:
    locks = Locks(redis, 0.6)
    for _ in range(200):
        locks.acquire("lock", "me")
        with locks.hold(Lease("lock", "me")):
            pass
    locks.acquire("lock", "me")

    with locks.hold(Lease("lock", "me")):
        redis.pexpire("lock", 60_000)
        eventually(lambda: redis.pttl("lock") <= 600)

    assert not redis.exists("lock")


@pytest.mark.parametrize("error", [RedisConnectionError("away"), ValueError("damaged")])
def test_what_has_no_lock_is_renewed_until_its_block_ends(
    redis: FakeRedis, eventually: Eventually, error: Exception
) -> None:
    # Given something that fails at first
    locks, calls = Locks(redis, 0.03), []

    def renew() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise error

    # When it is repeated, then that goes on until the block ends
    with locks.repeating(renew):
        eventually(lambda: len(calls) > 2)
    eventually(lambda: locks._thread is None)
    assert not locks._held


@pytest.mark.parametrize("error", [RedisConnectionError("away"), ValueError("damaged")])
def test_a_release_that_failed_is_repeated(
    redis: FakeRedis, eventually: Eventually, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    # Given a release that fails at first
    locks, errors = Locks(redis, 0.03), [error, error]
    redis.set("lock", "me")
    release = locks.release_overdue

    def release_overdue() -> None:
        if errors:
            raise errors.pop()
        release()

    monkeypatch.setattr(locks, "release_overdue", release_overdue)

    # When it is left for later, then it is done after all, and no thread is left
    locks.release_later(Lease("lock", "me"))
    eventually(lambda: not redis.exists("lock"))
    eventually(lambda: locks._thread is None)


def test_lease_of_another_is_neither_renewed_nor_released(redis: FakeRedis) -> None:
    locks = Locks(redis, 10)
    locks.acquire("lock", "me")
    with locks.hold(Lease("lock", "me")):
        redis.set("lock", "another", px=500)

    assert redis.get("lock") == "another"


def test_lease_is_taken_once(redis: FakeRedis) -> None:
    locks = Locks(redis, 10)

    assert locks.acquire("lock", "me")
    assert not locks.acquire("lock", "another")


def test_client_that_asks_twice_holds_the_lease(redis: FakeRedis) -> None:
    locks = Locks(redis, 10)

    assert locks.acquire("lock", "me")
    assert locks.acquire("lock", "me")


def test_no_thread_is_left_when_nothing_is_held(redis: FakeRedis, eventually: Eventually) -> None:
    locks = Locks(redis, 10)
    locks.acquire("lock", "me")
    with locks.hold(Lease("lock", "me")):
        thread = locks._thread
        assert thread is not None

    eventually(lambda: not thread.is_alive())
    assert thread not in threading.enumerate()


def test_renewal_sends_heartbeats_until_the_lock_is_lost(
    redis: FakeRedis, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a lock that is renewed
    locks, heartbeats, renewals = Locks(redis, seconds=0.3), [], []
    run_script = locks._scripts.run

    def recording_run(name: str, *arguments: Any) -> Any:
        renewals.append(name)
        return run_script(name, *arguments)

    locks.acquire("lock", "me")
    monkeypatch.setattr(locks._scripts, "run", recording_run)
    with locks.hold(Lease("lock", "me"), lambda: heartbeats.append(1)):
        eventually(lambda: len(heartbeats) > 1)

        # When another holder gets it
        redis.set("lock", "another", px=60_000)
        before, renewed = len(heartbeats), len(renewals)
        eventually(lambda: len(renewals) >= renewed + 3)

    # Then renewals send no more heartbeats, except one that was under way
    assert len(heartbeats) <= before + 1
