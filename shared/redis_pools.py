"""Pools of connections to Redis that keep few of them open when little is to do.

Redis-py's pools keep, for as long as the process lives, as many connections as were ever used at once.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from redis import BlockingConnectionPool, ConnectionPool
from redis.asyncio import BlockingConnectionPool as AsyncBlockingConnectionPool
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelConnectionPool
from redis.exceptions import RedisError
from redis.sentinel import SentinelConnectionPool

IDLE_SECONDS: Final = 30.0
"""A connection that nobody has used for so long is closed."""

LOOK_SECONDS: Final = 1.0
"""Time between two looks for such connections, which are made when another connection is released."""

SHARED_WAIT_SECONDS: Final = 1.0
"""A thread waits so long for the connection that it shares with others before it takes another one."""

_thread = threading.local()


@contextmanager
def sharing_connections() -> Iterator[None]:
    """Let all threads that are in such a block use one connection of each pool together.

    It is meant for threads whose commands may wait for each other, such as those of periodic work: they would
    need as many connections as look at the same moment.

    Yields:
        Nothing.
    """
    was_sharing = getattr(_thread, "is_sharing", False)
    _thread.is_sharing = True
    try:
        yield
    finally:
        _thread.is_sharing = was_sharing


class _KeepsFew:
    """Closes idle connections and lets threads share one, before a class of redis-py's pools."""

    _lock: Any

    def reset(self) -> None:
        self._sharing = threading.Lock()
        self._shared: Any = None
        self._next_look = 0.0
        super().reset()  # type: ignore[misc]

    def get_connection(self, *args: Any, **options: Any) -> Any:
        self._checkpid()  # type: ignore[attr-defined]  # a forked process begins with a lock of its own
        sharing = self._sharing
        shares = getattr(_thread, "is_sharing", False) and sharing.acquire(timeout=SHARED_WAIT_SECONDS)
        try:
            connection = super().get_connection(*args, **options)  # type: ignore[misc]
        except BaseException:
            if shares:
                sharing.release()
            raise
        if shares:
            self._shared = connection
        return connection

    def release(self, connection: Any) -> None:
        self._checkpid()  # type: ignore[attr-defined]
        now = connection.released_at = time.monotonic()
        sharing, was_shared = self._sharing, connection is self._shared
        if was_shared:
            # Before the pool has it back, and a thread that shares nothing may get and release it, too.
            self._shared = None
        try:
            super().release(connection)  # type: ignore[misc]
        finally:
            if was_shared:
                sharing.release()
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self._close_idle(now - IDLE_SECONDS)

    def _close_idle(self, released_before: float) -> None:
        with self._lock:
            _close(self._available_connections, released_before)  # type: ignore[attr-defined]


def _close(available: Iterable[Any], released_before: float) -> None:
    """Close those that were released earlier; the pool connects them again when it needs them."""
    for connection in available:
        # The pool gives the one that was released last, so those at the beginning are idle for longest.
        if connection.released_at >= released_before:
            return
        connection.disconnect()


class Pool(_KeepsFew, ConnectionPool):
    """A pool without a limit."""


class SentinelPool(_KeepsFew, SentinelConnectionPool):
    """A pool whose connections go to the master that the Sentinels name."""


class BlockingPool(_KeepsFew, BlockingConnectionPool):
    """A pool whose callers wait for one of a limited number of connections."""

    def _close_idle(self, released_before: float) -> None:
        with self.pool.mutex:
            _close(filter(None, self.pool.queue), released_before)


class _AsyncKeepsFew:
    """Closes idle connections, before a class of redis-py's pools for an event loop."""

    _next_look = 0.0

    async def release(self, connection: Any) -> None:
        now = connection.released_at = time.monotonic()
        await super().release(connection)  # type: ignore[misc]
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            await self._close_idle(now - IDLE_SECONDS)

    async def _close_idle(self, released_before: float) -> None:
        available: list[Any] = self._available_connections  # type: ignore[attr-defined]
        # Taken out before it is closed, because another task may need a connection meanwhile.
        while available and available[0].released_at < released_before:
            idle = available.pop(0)
            with suppress(RedisError, OSError):
                await idle.disconnect()


class AsyncPool(_AsyncKeepsFew, AsyncBlockingConnectionPool):
    """`BlockingPool` for an event loop."""


class AsyncSentinelPool(_AsyncKeepsFew, AsyncSentinelConnectionPool, AsyncBlockingConnectionPool):
    """`SentinelPool` for an event loop, whose callers wait for one of a limited number of connections."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close the connections, and those to the Sentinels, which redis-py leaves open.

        Args:
            inuse_connections: Also those that are used at the moment.
        """
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.aclose()
