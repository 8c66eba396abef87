"""Heartbeats of runs and waiting lists: which of them are overdue, so that a lost message is noticed."""

from collections.abc import Sequence

from redis import Redis

from worker.lua import redis_time
from worker.runs.keys import heartbeats_key, overdue_counts_key
from worker.runs.scripts import run_scripts

RUN_PREFIX = "run:"
"""Begins the heartbeat member of a run."""


def run_member(job: str) -> str:
    """The heartbeat member of a run."""
    return f"{RUN_PREFIX}{job}"


class Heartbeats:
    """All live runs and waiting lists, scored by the time (Redis's clock) at which the next heartbeat is due.

    A member is overdue `grace_seconds` after that, which is longer than the visibility timeout, because until
    then the broker itself delivers a message again.
    """

    def __init__(self, redis: "Redis", grace_seconds: float) -> None:
        self._redis = redis
        self._grace_seconds = grace_seconds
        self._scripts = run_scripts(redis)

    def schedule(self, member: str, within: float = 0.0) -> None:
        """Record a heartbeat; the next is due `within` seconds."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(heartbeats_key(), {member: self._deadline(within)})
            pipe.hdel(overdue_counts_key(), member)
            pipe.execute()

    def renew(self, member: str) -> None:
        """Record a heartbeat of a step that goes on; what is scheduled for later stays."""
        self._redis.zadd(heartbeats_key(), {member: self._deadline()}, gt=True)

    def schedule_all(self, members: Sequence[str]) -> None:
        """The same for many members at once, each of which is due now."""
        if members:
            deadline = self._deadline()
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.zadd(heartbeats_key(), dict.fromkeys(members, deadline))
                pipe.hdel(overdue_counts_key(), *members)
                pipe.execute()

    def extend(self, member: str, within: float) -> None:
        """The same for a member that may have been removed by now, and then stays removed."""
        self._redis.zadd(heartbeats_key(), {member: self._deadline(within)}, xx=True)

    def register(self, member: str) -> None:
        """Add a member; one that is there keeps its deadline."""
        self._redis.zadd(heartbeats_key(), {member: self._deadline()}, nx=True)

    def remove(self, member: str) -> None:
        """Expect no more heartbeats."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zrem(heartbeats_key(), member)
            pipe.hdel(overdue_counts_key(), member)
            pipe.execute()

    def overdue(self, limit: int = 100) -> list[str]:
        """Members whose heartbeat is overdue; each is given to one caller, and later each time."""
        keys = [heartbeats_key(), overdue_counts_key()]
        return list(self._scripts.run("claim_overdue", keys, self._grace_seconds, limit))

    def _deadline(self, within: float = 0.0) -> float:
        return int(redis_time(self._redis)) + within + self._grace_seconds
