"""What leaves a worker by way of Redis: all that it is reported and holds, and task events."""

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

_PACKED = re.compile(r"[A-Za-z0-9+/]{24,}={0,2}")


def unpacked(text: str) -> str:
    """`text`, and behind it what is in base64 inside of it (Celery's bodies are)."""
    found = [text]
    for match in _PACKED.finditer(text):
        packed = match.group()
        with contextlib.suppress(binascii.Error, ValueError):
            found.append(base64.b64decode(packed[: len(packed) // 4 * 4]).decode("latin-1"))
    return "\n".join(found)


def held(redis: Redis) -> dict[str, str]:
    """Every key with its value, of any type."""
    read: dict[str, Any] = {
        "string": redis.get,
        "hash": redis.hgetall,
        "list": lambda key: redis.lrange(key, 0, -1),
        "set": redis.smembers,
        "zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
        "stream": redis.xrange,
    }
    return {key: repr(read.get(redis.type(key), lambda _: "")(key)) for key in redis.scan_iter(count=1000)}


class Commands:
    """Every command that Redis gets, while the block lasts."""

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(url, encoding_errors="replace")
        self.seen: list[str] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def _listen(self) -> None:
        # The server ends first, or the connection is cut by `__exit__`.
        with contextlib.suppress(Exception), self._redis.monitor() as monitor:
            self._monitor = monitor
            for command in monitor.listen():
                self.seen.append(command["command"])

    def __enter__(self) -> "Commands":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        monitor = getattr(self, "_monitor", None)
        if monitor is not None and monitor.connection is not None:
            monitor.connection.disconnect()
        self._thread.join(5)
        self._redis.close()


@contextlib.contextmanager
def task_events(url: str) -> Iterator[list[dict[str, Any]]]:
    """Every task event, as a monitor gets it, while the block lasts."""
    seen: list[dict[str, Any]] = []
    over, ready = threading.Event(), threading.Event()

    def listen() -> None:
        with Celery(broker=url, set_as_current=False) as app, app.connection() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": seen.append})
            with receiver.consumer_context() as (consuming, _, _):
                ready.set()
                # It ends with the block, or with the server.
                with contextlib.suppress(ConnectionError, RedisError):
                    while not over.is_set():
                        with contextlib.suppress(TimeoutError):
                            consuming.drain_events(timeout=0.2)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield seen
    finally:
        over.set()
        thread.join(5)
