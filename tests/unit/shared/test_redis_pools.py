"""How many connections a pool keeps open when there is little to do."""

import os
import threading
from typing import Any

import pytest
from redis import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError

from shared import redis_pools
from shared.redis_pools import IDLE_SECONDS, AsyncPool, BlockingPool, Pool, sharing_connections

DEADLINE_SECONDS = 30


class FakeConnection:
    """As much of a connection as a pool needs; `fails` is what its next attempt to connect raises."""

    fails: Exception | None = None

    def __init__(self, **_: Any) -> None:
        self.pid = os.getpid()
        self.is_open = False

    def connect(self) -> None:
        if self.fails is not None:
            raise self.fails
        self.is_open = True

    def disconnect(self, *_: Any) -> None:
        self.is_open = False

    def can_read(self, **_: Any) -> bool:
        return False

    def should_reconnect(self) -> bool:
        return False

    def re_auth(self) -> None:
        pass


class FakeAsyncConnection(FakeConnection):
    """The same for an event loop."""

    async def connect(self) -> None:  # type: ignore[override]
        super().connect()

    async def disconnect(self, *_: Any) -> None:  # type: ignore[override]
        super().disconnect()

    async def can_read(self, **_: Any) -> bool:  # type: ignore[override]
        return False

    async def re_auth(self) -> None:  # type: ignore[override]
        pass


class Clock:
    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(redis_pools, "time", made)
    return made


@pytest.fixture
def pool() -> Pool:
    return Pool(connection_class=FakeConnection)


@pytest.mark.parametrize("kind", [Pool, BlockingPool])
def test_connections_that_nobody_uses_are_closed(kind: type[Any], clock: Clock) -> None:
    # Given three connections that were used at once
    pool = kind(connection_class=FakeConnection, max_connections=5)
    connections = [pool.get_connection() for _ in range(3)]
    for each in connections:
        pool.release(each)

    # When one alone is used for a while
    clock.now += IDLE_SECONDS / 2
    pool.release(pool.get_connection())
    assert all(each.is_open for each in connections)
    clock.now += IDLE_SECONDS / 2 + 1
    used = pool.get_connection()
    pool.release(used)

    # Then it alone is open, and the pool connects the others when they are needed again
    assert [each for each in connections if each.is_open] == [used]
    again = {pool.get_connection() for _ in range(3)}
    assert again == {*connections}
    assert all(each.is_open for each in again)


async def test_event_loop_closes_connections_that_nobody_uses(clock: Clock) -> None:
    pool = AsyncPool(connection_class=FakeAsyncConnection, max_connections=3, timeout=DEADLINE_SECONDS)
    connections: list[Any] = [await pool.get_connection() for _ in range(3)]
    for each in connections:
        await pool.release(each)

    clock.now += IDLE_SECONDS + 1
    used = await pool.get_connection()
    await pool.release(used)

    assert [each for each in connections if each.is_open] == [used]
    assert len({await pool.get_connection() for _ in range(3)}) == 3


def test_threads_share_one_connection(pool: Pool) -> None:
    # Given threads that need a connection at the same moment
    barrier, used = threading.Barrier(5), []

    def look() -> None:
        with sharing_connections():
            barrier.wait(DEADLINE_SECONDS)
            connection = pool.get_connection()
            used.append(connection)
            pool.release(connection)

    # When they share connections
    threads = [threading.Thread(target=look) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)

    # Then all of them had the same one
    assert len(used) == 5
    assert len({*used}) == 1


def test_a_shared_connection_that_hangs_holds_up_nobody(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a shared connection whose command hangs
    monkeypatch.setattr(redis_pools, "SHARED_WAIT_SECONDS", 0.01)
    with sharing_connections():
        hangs = pool.get_connection()

        # When another one is needed, then the pool gives it
        other = pool.get_connection()
        assert other is not hangs

        # And when the first one goes on, the next is shared again
        pool.release(other)
        pool.release(hangs)
        pool.get_connection()
        assert pool._sharing.locked()


def test_a_failed_connection_keeps_no_thread_waiting(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeConnection, "fails", RedisConnectionError("away"))
    with sharing_connections(), pytest.raises(RedisConnectionError):
        pool.get_connection()
    assert not pool._sharing.locked()


def test_who_shares_nothing_lets_nobody_share(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    release = ConnectionPool.release
    was_locked: list[bool] = []

    def release_and_let_others_go_on(pool: ConnectionPool, connection: Any) -> None:
        release(pool, connection)
        monkeypatch.setattr(ConnectionPool, "release", release)
        # When another thread gets it and gives it back before the first one goes on
        pool.release(pool.get_connection())
        was_locked.append(pool._sharing.locked())  # type: ignore[attr-defined]

    # Given a thread that gives the shared connection back
    with sharing_connections():
        connection = pool.get_connection()
    monkeypatch.setattr(ConnectionPool, "release", release_and_let_others_go_on)
    pool.release(connection)

    # Then the first one alone lets the next one share
    assert was_locked == [True]
    assert not pool._sharing.locked()


def test_a_forked_process_shares_anew(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a process that was forked while another thread used the shared connection
    child = os.getpid() + 1
    with sharing_connections():
        pool.get_connection()
        monkeypatch.setattr(os, "getpid", lambda: child)

        # When it uses the pool
        connection = pool.get_connection()

        # Then its threads share a connection of its own
        assert pool._sharing.locked()
        pool.release(connection)
        assert not pool._sharing.locked()


def test_threads_outside_share_nothing(pool: Pool) -> None:
    with sharing_connections():
        pass
    assert pool.get_connection() is not pool.get_connection()
    assert not pool._sharing.locked()
