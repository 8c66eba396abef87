"""Locks of steps: shorter than the visibility timeout, renewed while work goes on."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import structlog
from redis import Redis, RedisError

from worker.runs.scripts import run_scripts

log = structlog.get_logger(__name__)


class Locks:
    """Renews every lock that this process holds, from one thread that lives while there is one.

    A process that dies stops renewing, so what it held is free after `seconds`.
    """

    def __init__(self, redis: "Redis", seconds: float) -> None:
        self.seconds = seconds
        self._redis = redis
        self._scripts = run_scripts(redis)
        self._held: dict[str, tuple[str, Callable[[], None]]] = {}
        self._change = threading.Condition()
        self._thread: threading.Thread | None = None

    @staticmethod
    def new_token() -> str:
        """Who holds a lock."""
        return uuid4().hex

    @contextmanager
    def hold(self, key: str, token: str, on_renewal: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Renew the lock `key`, taken with `token`, until the block ends; then give it back.

        `alive` is called at each renewal, for work that gives no sign of life by itself.
        """
        with self._change:
            self._held[token] = (key, on_renewal)
            if self._thread is None:
                self._thread = threading.Thread(target=self._renew_all, name="lease-keeper", daemon=True)
                self._thread.start()
        try:
            yield
        finally:
            with self._change:
                del self._held[token]
                if not self._held:
                    self._change.notify()
            self._release(key, token)

    def acquire(self, key: str, token: str) -> bool:
        """Take a lock that no script takes along."""
        return bool(self._scripts.run("acquire_lock", [key], token, int(self.seconds * 1000)))

    def is_held(self, key: str, token: str) -> bool:
        """Whether the lock is still its own: who was suspended for long may have lost it to another."""
        return bool(self._redis.get(key) == token)

    def _release(self, key: str, token: str) -> None:
        try:
            self._scripts.run("release_lock", [key], token)
        except RedisError as error:
            # It runs out by itself; what was done under it is done.
            log.warning("lock not released", key=key, error_type=type(error).__name__)

    def _renew_all(self) -> None:
        while True:
            with self._change:
                self._change.wait(timeout=self.seconds / 3)
                if not self._held:
                    # Said under the lock, so that the next holder starts another thread.
                    self._thread = None
                    return
                held = list(self._held.items())
            for token, (key, alive) in held:
                try:
                    if self._scripts.run("renew_lock", [key], token, int(self.seconds * 1000)):
                        alive()
                except RedisError as error:
                    log.warning("lock not renewed", key=key, error_type=type(error).__name__)
