"""The election of one worker that does a periodic work for all."""

from redis import Redis

from shared.channels import redis_prefix
from worker.runs.locks import Locks
from worker.runs.scripts import run_scripts

LEASE_SECONDS = 15.0
"""How long a worker that died keeps a work from the others: they look when its lease may have ended."""


class Election:
    """The lease on a work: of all workers one holds it, and does the work, so that ten cost what one does.

    It saves work and guards nothing: each work is safe to do for two workers at once.
    """

    def __init__(self, redis: "Redis", name: str) -> None:
        self._redis = redis
        self._scripts = run_scripts(redis)
        self._key = f"{redis_prefix()}:maintenance:{name}"
        self._token = Locks.new_token()
        self._is_holder = False

    def hold(self) -> float:
        """Take or renew the lease; returns 0, or the seconds until another worker's lease may have ended."""
        milliseconds = int(LEASE_SECONDS * 1000)
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
            self._scripts.run("release_lock", [self._key], self._token)
