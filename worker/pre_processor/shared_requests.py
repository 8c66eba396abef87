"""The requests that a Serve application takes at once, shared by the runs that annotate with it.

Requests that no replica takes wait in Serve's router, which looks for a replica with growing pauses. Measured
with Ray 2.60: an application that takes 5 at once answers 153 requests a second with 5 in flight, 106 with 8,
35 with 32, and 12 with 64. How many it takes is known of one that this system has deployed, and whose own
code chooses no options; a run sends others as many as it would alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from redis import Redis

from shared.channels import redis_prefix
from worker.lua import redis_time
from worker.pre_processor.waitlist import WaitlistName
from worker.runs.locks import Locks
from worker.runs.scripts import run_scripts

KEPT_SECONDS = 90 * 24 * 60 * 60
"""How many requests an application takes is known for so long after it was deployed or last used."""
COUNTED_SECONDS = 180
"""A run whose worker died, and which nobody carries on, counts for so long."""


def taken_key(application: WaitlistName) -> str:
    """String: the requests that the application takes at once."""
    return f"{redis_prefix()}:application:{application.key}:requests"


def sharers_key(application: WaitlistName) -> str:
    """Sorted set: the jobs of the runs in a pass over a chunk, by the time at which it was last known."""
    return f"{redis_prefix()}:application:{application.key}:runs"


class SharedRequests:
    """Those of one application."""

    def __init__(self, redis: "Redis", application: WaitlistName) -> None:
        self._redis = redis
        self._taken, self._sharers = taken_key(application), sharers_key(application)

    def set(self, requests: int | None) -> None:
        """The application was deployed: it takes so many at once; None where that is not known."""
        if requests is None:
            self._redis.delete(self._taken)
        else:
            self._redis.set(self._taken, requests, ex=KEPT_SECONDS)

    @contextmanager
    def share(self, job: str, wanted: int, locks: Locks) -> Iterator[int]:
        """The requests that the run may have in flight in the pass within this block, at most `wanted`.

        The runs of all workers have equal parts, and at least one request each. What a run wants counts as
        taken by the application, also where that is more. By `locks` it counts while its pass goes on.
        """
        taken, runs = run_scripts(self._redis, "worker.pre_processor").run(
            "share_requests", [self._taken, self._sharers], job, COUNTED_SECONDS, KEPT_SECONDS
        )
        if not taken:
            yield wanted
            return
        try:
            with locks.repeating(partial(self._renew, job)):
                yield min(wanted, max(1, round(max(int(taken), wanted) / int(runs))))
        finally:
            self._redis.zrem(self._sharers, job)

    def _renew(self, job: str) -> None:
        now = redis_time(self._redis)
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(self._sharers, {job: now}, xx=True)  # the pass may have ended by now
            pipe.expire(self._sharers, COUNTED_SECONDS)
            pipe.execute()
