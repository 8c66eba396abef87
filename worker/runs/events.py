"""The events of a run on pub/sub, and the log of its job: one sequence of numbers over all its sources."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, NotRequired, TypedDict

from redis import Redis

from shared.channels import RETENTION_SECONDS, events_channel, job_key, logs_channel, logs_history
from worker.platform import redact
from worker.runs.keys import messages_key, run_key
from worker.runs.scripts import run_scripts

LOG_SCRIPT: Final = "log"

MESSAGE_HEADROOM_ENTRIES: Final = 10_000
"""Space in the history for the run's own messages, beyond the limit of relayed lines."""

MIN_HISTORY_ENTRIES: Final = 50_000 + MESSAGE_HEADROOM_ENTRIES
"""The history keeps at least so many entries, and more where the limit of relayed lines is larger."""


def log_state_key(job: str) -> str:
    """Hash: the last sequence number, and the position and the claim of each log relayed for the job."""
    return f"{job_key(job)}:logs:state"


def log_keys(job: str) -> list[str]:
    """The keys of the log script."""
    return [log_state_key(job), logs_history(job), run_key(job)]


def log_args(
    operation: str, job: str, *operands: str | int, history_entries: int = MIN_HISTORY_ENTRIES
) -> list[str | int]:
    """The arguments of the log script; `operands` are those of the operation."""
    return [operation, logs_channel(job), history_entries, RETENTION_SECONDS, *operands]


def line_time() -> str:
    """The current time as the log's lines state it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class JobLog:
    """The log of a job, for the run's own messages."""

    def __init__(self, redis: "Redis") -> None:
        self._scripts = run_scripts(redis)

    def append(self, job: str, text: str, level: str) -> None:
        """Append a message, one entry a line. Does nothing when the run has ended or is unknown."""
        # A JSON string can hold lone surrogates, which no encoding accepts.
        lines = text.encode(errors="replace").decode().split("\n")
        self._call("append_message", job, line_time(), level, *lines)

    def close_if_complete(self, job: str, *, reported: bool = False) -> None:
        """Write the end marker once the run and all relayed logs have ended. Safe to repeat.

        With `reported` the backend knows the run's end, so a closed log expires in a day.
        """
        self._call("close_if_complete", job, "1" if reported else "")

    def _call(self, operation: str, job: str, *operands: str | int) -> None:
        self._scripts.run(LOG_SCRIPT, log_keys(job), *log_args(operation, job, *operands))


class MessageEntry(TypedDict):
    """A message as the backend's log API takes it, except for the job."""

    event: str
    data: dict[str, str]
    datetime: str
    level: str
    step: NotRequired[str]


class Events:
    """Publishes a run's events on pub/sub and keeps its messages for the next report to the backend."""

    def __init__(self, redis: "Redis", on_message: Callable[[str], None] = lambda _job: None) -> None:
        """`on_message` is called with a job whose messages are to be reported."""
        self._redis = redis
        self._on_message = on_message
        self.log = JobLog(redis)
        self._scripts = run_scripts(redis)

    def publish(self, job: str, kind: str, **content: object) -> None:
        """Publish `{"type": kind, ...content}` on the run's channel."""
        self._redis.publish(events_channel(job), json.dumps({"type": kind, **content}))

    def message(
        self, job: str, text: str, *, step: str = "", level: str = "info", in_log: bool = True
    ) -> None:
        """Publish a message for users, log it, and send it to the backend with the next report.

        `in_log`: what a run says when it begins to wait is not logged, for a log takes more than the run.
        """
        content = redact(text)
        self.publish(job, "message", level=level, step=step, content=content)
        if in_log:
            self.log.append(job, content, level)
        entry: MessageEntry = {
            "event": "message",
            "data": {"content": content},
            "datetime": datetime.now(UTC).isoformat(),
            "level": level,
        }
        if step:
            entry["step"] = step
        if self._push_messages(job, "RPUSH", [entry]):
            self._on_message(job)

    def pop_messages(self, job: str, limit: int = 100) -> list[MessageEntry]:
        """Remove and return unreported messages; removed first, because users would see a repetition."""
        popped = self._redis.lpop(messages_key(job), limit)
        return [json.loads(entry) for entry in popped or []]

    def requeue_messages(self, job: str, entries: list[MessageEntry]) -> None:
        """Put messages that were certainly not delivered back in front for the next report."""
        self._push_messages(job, "LPUSH", entries[::-1])

    def _push_messages(self, job: str, command: str, entries: list[MessageEntry]) -> bool:
        """False when the run's end is reported, so that no report would send them any more."""
        keys = [run_key(job), messages_key(job)]
        return bool(self._scripts.run("push_messages", keys, command, *map(json.dumps, entries)))
