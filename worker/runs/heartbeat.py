"""Signs of life: who is due when, so that a lost message is noticed."""

from redis import Redis

from worker.lua import Scripts
from worker.runs.keys import LIVE, LIVE_OVERDUE


def run_member(job: str) -> str:
    """The name of a run among the live."""
    return f"run:{job}"


class Live:
    """Every live run and waiting room, scored by the time (Redis's clock) of its next sign of life.

    `patience`: seconds after which a silent one counts as lost; longer than the visibility timeout, for until
    then the broker itself delivers again.
    """

    def __init__(self, redis: "Redis", patience: float) -> None:
        self._redis = redis
        self._patience = patience
        self._scripts = Scripts(redis, "worker.runs")

    def expect(self, member: str, within: float = 0.0) -> None:
        """A sign of life: the next is due `within` seconds and the patience."""
        now = int(self._redis.time()[0])
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(LIVE, {member: now + within + self._patience})
            pipe.hdel(LIVE_OVERDUE, member)
            pipe.execute()

    def put_off(self, member: str, within: float) -> None:
        """A sign of life of one that may have ended by now, and is not expected again then."""
        now = int(self._redis.time()[0])
        self._redis.zadd(LIVE, {member: now + within + self._patience}, xx=True)

    def include(self, member: str) -> None:
        """It lives from now on. What is expected of it already is not put off."""
        now = int(self._redis.time()[0])
        self._redis.zadd(LIVE, {member: now + self._patience}, nx=True)

    def forget(self, member: str) -> None:
        """Nothing more is expected."""
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zrem(LIVE, member)
            pipe.hdel(LIVE_OVERDUE, member)
            pipe.execute()

    def overdue(self, most: int = 100) -> list[str]:
        """Members that missed their time; each is given out to one caller."""
        return list(self._scripts.run("overdue", [LIVE, LIVE_OVERDUE], self._patience, most))
