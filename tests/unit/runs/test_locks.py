"""Locks are held by one, renewed while the work goes on, and released."""

import threading
import time
from collections.abc import Callable

from fakeredis import FakeRedis

from worker.runs.locks import Locks

Eventually = Callable[[Callable[[], object]], None]


def test_lease_is_renewed_while_held(redis: FakeRedis, eventually: Eventually) -> None:
    keeper = Locks(redis, 0.6)
    keeper.acquire("lock", "me")
    with keeper.hold("lock", "me"):
        redis.pexpire("lock", 60_000)
        eventually(lambda: redis.pttl("lock") <= 600)

    assert not redis.exists("lock")


def test_lease_is_renewed_also_when_it_follows_another_at_once(
    redis: FakeRedis, eventually: Eventually
) -> None:
    keeper = Locks(redis, 0.6)
    for _ in range(200):
        keeper.acquire("lock", "me")
        with keeper.hold("lock", "me"):
            pass
    keeper.acquire("lock", "me")

    with keeper.hold("lock", "me"):
        redis.pexpire("lock", 60_000)
        eventually(lambda: redis.pttl("lock") <= 600)


def test_lease_of_another_is_neither_renewed_nor_released(redis: FakeRedis) -> None:
    keeper = Locks(redis, 10)
    keeper.acquire("lock", "me")
    with keeper.hold("lock", "me"):
        redis.set("lock", "another", px=500)

    assert redis.get("lock") == "another"


def test_lease_is_taken_once(redis: FakeRedis) -> None:
    keeper = Locks(redis, 10)

    assert keeper.acquire("lock", "me")
    assert not keeper.acquire("lock", "another")


def test_client_that_asks_twice_holds_the_lease(redis: FakeRedis) -> None:
    keeper = Locks(redis, 10)

    assert keeper.acquire("lock", "me")
    assert keeper.acquire("lock", "me")


def test_no_thread_is_left_when_nothing_is_held(redis: FakeRedis, eventually: Eventually) -> None:
    keeper = Locks(redis, 10)
    keeper.acquire("lock", "me")
    with keeper.hold("lock", "me"):
        thread = keeper._thread
        assert thread is not None

    eventually(lambda: not thread.is_alive())
    assert thread not in threading.enumerate()


def test_renewal_of_a_lock_sends_heartbeats(redis: FakeRedis, eventually: Eventually) -> None:
    keeper, signs = Locks(redis, seconds=0.3), []
    keeper.acquire("lock", "me")
    with keeper.hold("lock", "me", lambda: signs.append(1)):
        eventually(lambda: len(signs) > 1)
        redis.set("lock", "another", px=300)  # lost: the one that has it gives the signs
        before = len(signs)
        time.sleep(0.25)
    assert len(signs) <= before + 1
