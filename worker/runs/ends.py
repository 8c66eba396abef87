"""Hears on an event loop that runs have ended, so that nobody asks Redis before each request."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import structlog
from redis import RedisError
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.client import PubSub
from redis.exceptions import NoPermissionError

from shared.channels import events_channel
from shared.statuses import is_final_status

log = structlog.get_logger(__name__)

RECONNECT_SECONDS, REJECTED_SECONDS = 1.0, 60.0
"""Until the next attempt when the connection was lost, and when Redis's user may not subscribe."""


class RunEnd:
    """What was heard of a run.

    `heard`: the run has ended. `heard_since`: from this time on (`time.monotonic`) its end is heard; None
    while it is not. An end before that time is only found by asking Redis.
    """

    def __init__(self) -> None:
        self.heard = False
        self.heard_since: float | None = None
        self.watchers = 0


class RunEnds:
    """One subscription for all runs that a process works on; closed while it works on none.

    While Redis is away, or rejects subscriptions, nothing is heard: see `RunEnd.heard_since`.
    """

    def __init__(
        self, call_on_loop: Callable[[Callable[[], None]], None], make_redis: Callable[[], "AsyncRedis"]
    ) -> None:
        """`call_on_loop` calls a function on the event loop soon; `make_redis` is called there."""
        self._call_on_loop = call_on_loop
        self._make_redis = make_redis
        self._lock = threading.Lock()
        self._ends: dict[str, RunEnd] = {}
        """By channel."""
        # The following belong to the event loop.
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._redis: AsyncRedis | None = None
        self._pubsub: PubSub | None = None
        self._reader: asyncio.Task[None] | None = None
        self._reconnecting: asyncio.TimerHandle | None = None
        self._subscribed: set[str] = set()
        self._confirmed: set[str] = set()
        """Channels of which Redis has confirmed the subscription."""

    @contextmanager
    def watching(self, job: str) -> Iterator[RunEnd]:
        """Listen for the end of the run while in the block. From any thread."""
        channel = events_channel(job)
        with self._lock:
            end = self._ends.setdefault(channel, RunEnd())
            end.watchers += 1
        self._call_on_loop(self._update)
        try:
            yield end
        finally:
            with self._lock:
                end.watchers -= 1
                if not end.watchers:
                    del self._ends[channel]
            self._call_on_loop(self._update)

    async def aclose(self) -> None:
        """Close the connection. On the event loop."""
        async with self._changing:
            await self._disconnect()

    # -- on the event loop ---------------------------------------------------------------------------------

    def _update(self) -> None:
        self._start(self._synchronize())

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # the loop itself keeps weak references alone
        task.add_done_callback(self._tasks.discard)
        return task

    async def _synchronize(self) -> None:
        """Subscribe to the channels of the runs that are watched now, and to no others."""
        async with self._changing:
            with self._lock:
                wanted = set(self._ends)
            if not wanted:
                await self._disconnect()
                return
            if self._pubsub is None:
                self._redis = self._make_redis()
                self._pubsub = self._redis.pubsub()
            try:
                if added := wanted - self._subscribed:
                    await self._pubsub.subscribe(*added)
                if removed := self._subscribed - wanted:
                    await self._pubsub.unsubscribe(*removed)
            except (RedisError, OSError) as error:
                await self._lose(error)
                return
            self._subscribed = wanted
            self._confirmed &= wanted
            self._note_confirmed()
            if self._reader is None:
                self._reader = self._start(self._read(self._pubsub))

    def _note_confirmed(self) -> None:
        now = time.monotonic()
        with self._lock:
            for channel in self._confirmed:
                end = self._ends.get(channel)
                if end is not None and end.heard_since is None:
                    end.heard_since = now

    async def _read(self, pubsub: PubSub) -> None:
        try:
            while True:
                message = await pubsub.get_message(timeout=None)
                if message is not None:
                    self._hear(message)
        except Exception as error:
            # Of any kind, such as a text that is no UTF-8: without a reader nothing must count as heard.
            async with self._changing:
                if pubsub is self._pubsub:
                    await self._lose(error)

    def _hear(self, message: dict[str, Any]) -> None:
        channel = message["channel"]
        if message["type"] == "subscribe" and channel in self._subscribed:
            # Again when the client has connected anew by itself: what happened before was not heard.
            self._confirmed.add(channel)
            with self._lock:
                if channel in self._ends:
                    self._ends[channel].heard_since = time.monotonic()
        elif message["type"] == "message" and _is_end(message["data"]):
            with self._lock:
                end = self._ends.get(channel)
            if end is not None:
                end.heard = True

    async def _lose(self, error: Exception) -> None:
        """Nothing is heard any more; subscribe anew after a while."""
        log.warning("ends of runs not heard", error_type=type(error).__name__)
        await self._disconnect()
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        # A user without the right to subscribe does not get it within a second.
        seconds = REJECTED_SECONDS if isinstance(error, NoPermissionError) else RECONNECT_SECONDS
        self._reconnecting = asyncio.get_running_loop().call_later(seconds, self._update)

    async def _disconnect(self) -> None:
        with self._lock:
            for end in self._ends.values():
                end.heard_since = None
        pubsub, redis, self._pubsub, self._redis = self._pubsub, self._redis, None, None
        reader, self._reader = self._reader, None
        if reader is not None and reader is not asyncio.current_task():
            reader.cancel()
        self._subscribed, self._confirmed = set(), set()
        with suppress(RedisError, OSError):
            if pubsub is not None:
                await pubsub.aclose()
            if redis is not None:
                await redis.aclose(close_connection_pool=True)


def _is_end(data: str) -> bool:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(event, dict) and event.get("type") == "state" and is_final_status(event.get("status"))
