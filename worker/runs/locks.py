"""Locks of steps, which expire before the visibility timeout and are renewed; and leases on periodic work."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import structlog
from redis import Redis, RedisError

from shared.channels import redis_prefix
from worker.runs import keys
from worker.runs.model import Lease
from worker.runs.scripts import run_scripts

log = structlog.get_logger(__name__)


def step_lease(job: str, name: str, token: str) -> Lease:
    """What a delivery of the step, or of the part of one, gets when it claims it."""
    return Lease(keys.lock_key(job, name), token, (keys.polls_key(job), keys.deliveries_field(name)))


def release_arguments(lease: Lease) -> tuple[list[str], str, str]:
    """Keys and arguments of the script that releases the lock and ends the delivery that held it."""
    polls, field = lease.deliveries or ("", "")
    return [lease.key, polls] if polls else [lease.key], lease.token, field


class Locks:
    """Renews every lock that this process holds, from one thread, which ends soon after there is none.

    The locks of a process that dies are free after `seconds`.
    """

    def __init__(self, redis: "Redis", seconds: float) -> None:
        self.seconds = seconds
        self._redis = redis
        self._scripts = run_scripts(redis)
        self._held: dict[str, tuple[str, Callable[[], None]]] = {}
        """By token: the lock's key, empty for what is renewed without one, and what is called then."""
        self._unreleased: dict[str, Lease] = {}
        self._change = threading.Lock()
        self._thread: threading.Thread | None = None

    @staticmethod
    def new_token() -> str:
        """A value that names one holder of a lock."""
        return uuid4().hex

    @contextmanager
    def hold(self, lease: Lease, on_renewal: Callable[[], None] = lambda: None) -> Iterator[None]:
        """`renewing`, and release the lock after the block."""
        try:
            with self.renewing(lease, on_renewal):
                yield
        finally:
            self.release(lease)

    @contextmanager
    def renewing(self, lease: Lease, on_renewal: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Renew the lock, which was acquired, until the block ends.

        `on_renewal` is called at each renewal, so that long work can send heartbeats.
        """
        with self._held_until_end(lease.token, lease.key, on_renewal):
            yield

    @contextmanager
    def repeating(self, function: Callable[[], None]) -> Iterator[None]:
        """Call `function` as often as a lock is renewed, until the block ends; what it raises is logged.

        One call may still be under way then.
        """
        with self._held_until_end(self.new_token(), "", function):
            yield

    @contextmanager
    def _held_until_end(self, token: str, key: str, on_renewal: Callable[[], None]) -> Iterator[None]:
        with self._change:
            self._held[token] = (key, on_renewal)
            self._start_thread()
        try:
            yield
        finally:
            with self._change:
                del self._held[token]

    def acquire(self, key: str, token: str) -> bool:
        """Take the lock; false when another token holds it."""
        return bool(self._scripts.run("acquire_lock", [key], token, int(self.seconds * 1000)))

    def is_held(self, key: str, token: str) -> bool:
        """Whether `token` still holds the lock. A process that was suspended may have lost it."""
        return bool(self._redis.get(key) == token)

    def release(self, lease: Lease) -> None:
        """Give up the lock, if it is still held."""
        try:
            self._scripts.run("release_lock", *release_arguments(lease))
        except RedisError as error:
            # The lock expires by itself, and what was done under it is done.
            log.warning("lock not released", key=lease.key, error_type=type(error).__name__)
            self.release_later(lease)

    def release_later(self, lease: Lease) -> None:
        """Release a lock that may be held, when Redis answers again: its delivery has ended and not died."""
        with self._change:
            self._unreleased[lease.token] = lease
            self._start_thread()

    def release_overdue(self) -> None:
        """Release what could not be released when it was due; raises `RedisError`."""
        for token, lease in list(self._unreleased.items()):
            self._scripts.run("release_lock", *release_arguments(lease))
            self._unreleased.pop(token, None)

    def _start_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._renew_all, name="lock-renewal", daemon=True)
            self._thread.start()

    def _renew_all(self) -> None:
        while True:
            time.sleep(self.seconds / 3)
            with self._change:
                # Not as soon as none is held: most are held for milliseconds, less than a thread costs.
                if not self._held and not self._unreleased:
                    # Cleared under the lock, so that the next holder starts another thread.
                    self._thread = None
                    return
                held = list(self._held.items())
            for token, (key, on_renewal) in held:
                try:
                    if not key or self._scripts.run("renew_lock", [key], token, int(self.seconds * 1000)):
                        on_renewal()
                except Exception as error:
                    # Of any kind: one that ended this thread would let all other locks expire, too.
                    log.warning("lock not renewed", key=key or None, error_type=type(error).__name__)
            try:
                self.release_overdue()
            except Exception as error:
                log.warning("lock not released", error_type=type(error).__name__)


LEASE_SECONDS = 15.0
"""How long a worker that died keeps a work from the others: they look when its lease may have ended."""


class Election:
    """The lease on a work: of all workers one holds it, and does the work, so that ten cost what one does.

    It saves work and guards nothing: each work is safe to do for two workers at once.
    """

    def __init__(self, redis: "Redis", name: str, lease_seconds: float = LEASE_SECONDS) -> None:
        self._redis = redis
        self._lease_seconds = lease_seconds
        self._scripts = run_scripts(redis)
        self._key = f"{redis_prefix()}:maintenance:{name}"
        self._token = Locks.new_token()
        self._is_holder = False

    def hold(self) -> float:
        """Take or renew the lease; returns 0, or the seconds until another worker's lease may have ended."""
        milliseconds = int(self._lease_seconds * 1000)
        if self._is_holder and self._scripts.run("renew_lock", [self._key], self._token, milliseconds):
            return 0.0
        left = self._redis.pttl(self._key)
        self._is_holder = left <= 0 and bool(
            self._redis.set(self._key, self._token, nx=True, px=milliseconds)
        )
        return 0.0 if self._is_holder else max(left / 1000, 0.0) + 0.1

    def resign(self) -> None:
        """Let another worker take the lease, if it was this one's."""
        if self._is_holder:
            self._is_holder = False
            self._scripts.run("release_lock", *release_arguments(Lease(self._key, self._token)))
