"""The logs of ended jobs: how much of Redis all of them may take, and for how long."""

from collections.abc import Iterable

from redis import Redis

from shared.channels import logs_history
from worker.lua import redis_time
from worker.runs.events import log_state_key
from worker.runs.keys import ended_logs_key, kept_log_sizes_key, kept_logs_key
from worker.runs.scripts import run_scripts

BATCH = 500
"""Logs that one call of Redis is about."""

TOTAL_FIELD = ":total"
"""Field of the sizes: the sum of the others, which are named by jobs. No job has a name with a colon."""


class EndedLogs:
    """Removes the oldest logs when all take too much, and each after a time.

    A log enters as ended when its run's end was reported, or when a relay closed it. Its size is taken once.
    """

    def __init__(self, redis: "Redis", max_bytes: int, max_age_seconds: float) -> None:
        self._redis = redis
        self._scripts = run_scripts(redis, "worker.logs")
        self._max_bytes, self._max_age_seconds = max_bytes, max_age_seconds

    def trim(self) -> None:
        """Record what has ended since the last time, and remove what is too old or too much."""
        self._total()  # scripts add to it
        while ended := self._redis.zrange(ended_logs_key(), 0, BATCH - 1):
            self._record_sizes(ended)
        until = redis_time(self._redis) - self._max_age_seconds
        while old := self._redis.zrangebyscore(kept_logs_key(), "-inf", until, start=0, num=BATCH):
            self._drop(old)
        while self._total() > self._max_bytes:
            oldest = self._redis.zrange(kept_logs_key(), 0, 0)
            if not oldest:
                return
            self._drop(oldest)

    def _record_sizes(self, jobs: list[str]) -> None:
        """Count the logs that are over. The others come again: at the end of the run, or of the last log."""
        with self._redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hexists(log_state_key(job), "over")
                pipe.memory_usage(logs_history(job))
            found = pipe.execute()
        keys = [ended_logs_key(), kept_logs_key(), kept_log_sizes_key()]
        for job, is_over, size in zip(jobs, found[::2], found[1::2], strict=True):
            if is_over and size is not None:
                self._scripts.run("keep_ended_log", keys, job, int(size), TOTAL_FIELD)
            else:
                self._redis.zrem(ended_logs_key(), job)

    def _total(self) -> int:
        """The bytes of all; one that is damaged is counted again."""
        try:
            return int(self._redis.hget(kept_log_sizes_key(), TOTAL_FIELD) or 0)
        except ValueError:
            sizes = self._redis.hgetall(kept_log_sizes_key())
            counted = {job: size for job, size in sizes.items() if size.isascii() and size.isdigit()}
            total = sum(map(int, counted.values())) - int(counted.get(TOTAL_FIELD, 0))
            self._redis.hset(kept_log_sizes_key(), TOTAL_FIELD, total)
            return total

    def _drop(self, jobs: Iterable[str]) -> None:
        for job in jobs:
            keys = [logs_history(job), log_state_key(job), kept_logs_key(), kept_log_sizes_key()]
            self._scripts.run("drop_ended_log", keys, job, TOTAL_FIELD)
