"""Messages that could not be accepted, kept whole with the reason."""

import json
from datetime import UTC, datetime
from typing import Any

from redis import Redis

from shared.channels import DEAD_LETTERS


class DeadLetters:
    """The dead-letter stream."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis

    def add(self, task: str, body: Any, reason: str, *, message_id: str | None = None) -> None:
        """Keep a message: the task's name, the body as it came, and why it was refused.

        A second delivery of the same message (`message_id`) is kept once.
        """
        seen = f"{DEAD_LETTERS}:seen:{message_id}"
        if message_id is not None and self._redis.exists(seen):
            return
        entry = {
            "task": task,
            "body": body if isinstance(body, str) else json.dumps(body),
            "reason": reason,
            "time": datetime.now(UTC).isoformat(),
        }
        self._redis.xadd(DEAD_LETTERS, entry)
        if message_id is not None:
            self._redis.set(seen, 1, ex=86_400)
