"""What a run tells its listeners: state, progress, metrics and messages over pub/sub, messages in its log."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from redis import Redis

from shared.channels import events_channel
from worker.platform import redact
from worker.runs.keys import messages_key, run_key
from worker.runs.log_channel import LogChannel
from worker.runs.scripts import Scripts


class Events:
    """Publishes a run's events; nobody has to listen."""

    def __init__(self, redis: "Redis", changed: Callable[[str], None] = lambda _job: None) -> None:
        """`changed` is told of a run that has something to report."""
        self._redis = redis
        self._changed = changed
        self.log = LogChannel(redis)
        self._scripts = Scripts(redis, "worker.runs")

    def publish(self, job: str, kind: str, **content: Any) -> None:
        """Send `{"type": kind, ...content}` on the run's channel."""
        self._redis.publish(events_channel(job), json.dumps({"type": kind, **content}))

    def message(self, job: str, text: str, *, step: str = "", level: str = "info") -> None:
        """A message for users: on the channels now, in the backend's log with the next report."""
        content = redact(text)
        self.publish(job, "message", level=level, step=step, content=content)
        self.log.say(job, content, level)
        entry: dict[str, Any] = {
            "event": "message",
            "data": {"content": content},
            "datetime": datetime.now(UTC).isoformat(),
            "level": level,
        }
        if step:
            entry["step"] = step
        if self._keep(job, "RPUSH", [entry]):
            self._changed(job)

    def take_messages(self, job: str, most: int = 100) -> list[dict[str, Any]]:
        """Messages that the backend has not been sent; they are taken, for sending twice shows twice."""
        taken = self._redis.lpop(messages_key(job), most)
        return [json.loads(entry) for entry in taken or []]

    def give_back(self, job: str, entries: list[dict[str, Any]]) -> None:
        """Messages that certainly were not delivered wait for the next report."""
        self._keep(job, "LPUSH", entries[::-1])

    def _keep(self, job: str, push: str, entries: list[dict[str, Any]]) -> bool:
        """False when nobody would send them any more."""
        keys = [run_key(job), messages_key(job)]
        return bool(self._scripts.run("keep_messages", keys, push, *map(json.dumps, entries)))
