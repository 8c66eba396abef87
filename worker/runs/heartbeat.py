"""Signs of life: who is due when, so that a lost message is noticed."""

from redis import Redis

from worker.lua import redis_time
from worker.runs.keys import HEARTBEATS_KEY, OVERDUE_COUNTS_KEY
from worker.runs.scripts import run_scripts


def run_member(job: str) -> str:
    """The name of a run among the live."""
    return f"run:{job}"


class Heartbeats:
    """Every live run and waiting room, scored by the time (Redis's clock) of its next sign of life.

    `patience`: seconds after which a silent one counts as lost; longer than the visibility timeout, for until
    then the broker itself delivers again.
    """

    def __init__(self, redis: "Redis", grace_seconds: float) -> None:
        self._redis = redis
        self._patience = grace_seconds
        self._scripts = run_scripts(redis)

    def schedule(self, member: str, within: float = 0.0) -> None:
        """A sign of life: the next is due `within` seconds and the patience."""
        now = int(redis_time(self._redis))
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(HEARTBEATS_KEY, {member: now + within + self._patience})
            pipe.hdel(OVERDUE_COUNTS_KEY, member)
            pipe.execute()

    def extend(self, member: str, within: float) -> None:
        """A sign of life of one that may have ended by now, and is not expected again then."""
        now = int(redis_time(self._redis))
        self._redis.zadd(HEARTBEATS_KEY, {member: now + within + self._patience}, xx=True)

    def register(self, member: str) -> None:
        """It lives from now on. What is expected of it already is not put off."""
        now = int(redis_time(self._redis))
        self._redis.zadd(HEARTBEATS_KEY, {member: now + self._patience}, nx=True)

    def remove(self, member: str) -> None:
        """Nothing more is expected."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zrem(HEARTBEATS_KEY, member)
            pipe.hdel(OVERDUE_COUNTS_KEY, member)
            pipe.execute()

    def overdue(self, most: int = 100) -> list[str]:
        """Members that missed their time; each is given out to one caller."""
        return list(
            self._scripts.run("claim_overdue", [HEARTBEATS_KEY, OVERDUE_COUNTS_KEY], self._patience, most)
        )
