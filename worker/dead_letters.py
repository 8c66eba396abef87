"""Messages that could not be accepted, kept whole with the reason."""

import json
from datetime import UTC, datetime
from typing import Any

from redis import Redis

from shared.channels import DEAD_LETTERS

DAY_SECONDS = 86_400

REFUSED_JOBS = f"{{{DEAD_LETTERS}}}:jobs"
"""Set: jobs that are FAILED in the backend for nothing but a refused message."""

_ADD = """
-- KEYS: stream, seen (or the stream again)   ARGV: seconds, then the entry
if KEYS[2] ~= KEYS[1] and not redis.call('SET', KEYS[2], 1, 'NX', 'EX', ARGV[1]) then return 0 end
redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
return 1
"""


class DeadLetters:
    """The dead-letter stream."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._add = redis.register_script(_ADD)

    def add(self, task: str, body: Any, reason: str, *, message_id: str | None = None) -> None:
        """Keep a message: the task's name, the body as it came, and why it was refused.

        A second delivery of the same message (`message_id`) is kept once.
        """
        entry = {
            "task": task,
            "body": body if isinstance(body, str) else json.dumps(body, ensure_ascii=False, default=repr),
            "reason": reason,
            "time": datetime.now(UTC).isoformat(),
        }
        # The braces keep both keys together in a Redis Cluster.
        seen = DEAD_LETTERS if message_id is None else f"{{{DEAD_LETTERS}}}:seen:{message_id}"
        fields = [part for pair in entry.items() for part in pair]
        self._add(keys=[DEAD_LETTERS, seen], args=[DAY_SECONDS, *fields])

    def refused(self, job: str) -> None:
        """The job is being set FAILED because of a dead letter."""
        self._redis.sadd(REFUSED_JOBS, job)

    def is_refused(self, job: str) -> bool:
        """Whether a replay of the job's message may open it again."""
        return bool(self._redis.sismember(REFUSED_JOBS, job))

    def forget(self, job: str) -> None:
        """The job was opened again."""
        self._redis.srem(REFUSED_JOBS, job)
