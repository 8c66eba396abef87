"""What a run tells its listeners over pub/sub, and the log of its job: one numbering over all its sources."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from redis import Redis

from shared.channels import RETENTION_SECONDS, events_channel, job_key, logs_channel, logs_history
from worker.platform import redact
from worker.runs.keys import messages_key, run_key
from worker.runs.scripts import run_scripts

SCRIPT: Final = "log"

MESSAGE_HEADROOM: Final = 10_000
"""Entries of the history beyond the most lines that are relayed."""

MIN_HISTORY_ENTRIES: Final = 50_000 + MESSAGE_HEADROOM
"""Entries that a history keeps at least, trimmed only beyond; one with a larger limit of lines keeps more."""


def log_state_key(job: str) -> str:
    """Hash: the last number, and of every log that is followed where it stands and who follows it."""
    return f"{job_key(job)}:logs:state"


def log_keys(job: str) -> list[str]:
    """The keys of the script."""
    return [log_state_key(job), logs_history(job), run_key(job)]


def log_args(
    operation: str, job: str, *own: str | int, longest: int = MIN_HISTORY_ENTRIES
) -> list[str | int]:
    """The arguments of the script, `own` being those of the operation."""
    return [operation, logs_channel(job), longest, RETENTION_SECONDS, *own]


def now() -> str:
    """The time of a line."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class JobLog:
    """The log as a run writes it."""

    def __init__(self, redis: "Redis") -> None:
        self._scripts = run_scripts(redis)

    def append(self, job: str, text: str, level: str) -> None:
        """Add a message of the run, a line a line. One of a run that is over, or unknown, goes nowhere."""
        # JSON can spell halves of characters that no encoding can carry further.
        lines = text.encode(errors="replace").decode().split("\n")
        self._run("say", job, now(), level, *lines)

    def close_if_complete(self, job: str, *, reported: bool = False) -> None:
        """Say that the log is over, if the run and every followed log are. Safe to repeat.

        `reported`: the backend has the run's end, so what is over expires in a day.
        """
        self._run("settle", job, "1" if reported else "")

    def _run(self, operation: str, job: str, *own: str | int) -> None:
        self._scripts.run(SCRIPT, log_keys(job), *log_args(operation, job, *own))


class Events:
    """Publishes a run's events; nobody has to listen."""

    def __init__(self, redis: "Redis", on_change: Callable[[str], None] = lambda _job: None) -> None:
        """`changed` is told of a run that has something to report."""
        self._redis = redis
        self._changed = on_change
        self.log = JobLog(redis)
        self._scripts = run_scripts(redis)

    def publish(self, job: str, kind: str, **content: Any) -> None:
        """Send `{"type": kind, ...content}` on the run's channel."""
        self._redis.publish(events_channel(job), json.dumps({"type": kind, **content}))

    def message(self, job: str, text: str, *, step: str = "", level: str = "info") -> None:
        """A message for users: on the channels now, in the backend's log with the next report."""
        content = redact(text)
        self.publish(job, "message", level=level, step=step, content=content)
        self.log.append(job, content, level)
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

    def pop_messages(self, job: str, most: int = 100) -> list[dict[str, Any]]:
        """Messages that the backend has not been sent; they are taken, for sending twice shows twice."""
        taken = self._redis.lpop(messages_key(job), most)
        return [json.loads(entry) for entry in taken or []]

    def requeue_messages(self, job: str, entries: list[dict[str, Any]]) -> None:
        """Messages that certainly were not delivered wait for the next report."""
        self._keep(job, "LPUSH", entries[::-1])

    def _keep(self, job: str, push: str, entries: list[dict[str, Any]]) -> bool:
        """False when nobody would send them any more."""
        keys = [run_key(job), messages_key(job)]
        return bool(self._scripts.run("push_messages", keys, push, *map(json.dumps, entries)))
