"""Everything that a worker sends to Redis and stores there, and the task events that it sends."""

import base64
import binascii
import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Any

from celery import Celery
from redis import Redis
from redis.exceptions import RedisError

from worker.sandbox import wait_for

_BASE64 = re.compile(r"[A-Za-z0-9+/]{24,}={0,2}")


def with_base64_decoded(text: str) -> str:
    """`text`, followed by what it contains in base64, as the bodies of Celery's messages."""
    found = [text]
    for match in _BASE64.finditer(text):
        encoded = match.group()
        with contextlib.suppress(binascii.Error, ValueError):
            found.append(base64.b64decode(encoded[: len(encoded) // 4 * 4]).decode("latin-1"))
    return "\n".join(found)


def all_keys(redis: Redis) -> dict[str, str]:
    """The values of all keys, of any type, as text."""
    readers: dict[str, Any] = {
        "string": redis.get,
        "hash": redis.hgetall,
        "list": lambda key: redis.lrange(key, 0, -1),
        "set": redis.smembers,
        "zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
        "stream": redis.xrange,
    }
    return {key: repr(readers.get(redis.type(key), lambda _: "")(key)) for key in redis.scan_iter(count=1000)}


class RedisMonitor:
    """Collects every command that Redis receives during the block."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._redis = Redis.from_url(url, encoding_errors="replace")
        self.commands: list[str] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def _listen(self) -> None:
        # It ends with an error: when Redis is killed, or when `__exit__` closes the connection.
        with contextlib.suppress(Exception), self._redis.monitor() as monitor:
            self._monitor = monitor
            for command in monitor.listen():
                self.commands.append(command["command"])

    def __enter__(self) -> "RedisMonitor":
        self._thread.start()
        # What is sent from now on is heard.
        with Redis.from_url(self._url) as redis:
            wait_for(lambda: redis.ping() and self.commands, 30, "the monitor")
        return self

    def __exit__(self, *_: object) -> None:
        monitor = getattr(self, "_monitor", None)
        if monitor is not None and monitor.connection is not None:
            monitor.connection.disconnect()
        self._thread.join(5)
        self._redis.close()


@contextlib.contextmanager
def task_events(url: str) -> Iterator[list[dict[str, Any]]]:
    """Collect Celery's task events during the block, and ask for them again and again, as Flower does."""
    received: list[dict[str, Any]] = []
    block_ended, ready = threading.Event(), threading.Event()

    def listen() -> None:
        with Celery(broker=url, set_as_current=False) as app, app.connection() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": received.append})
            with receiver.consumer_context() as (consuming, _, _):
                ready.set()
                # It ends with the block, or when Redis is killed.
                with contextlib.suppress(ConnectionError, RedisError):
                    while not block_ended.is_set():
                        app.control.enable_events()
                        with contextlib.suppress(TimeoutError):
                            consuming.drain_events(timeout=0.2)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    assert ready.wait(10), "the receiver of events did not start"
    try:
        yield received
    finally:
        block_ended.set()
        thread.join(5)
