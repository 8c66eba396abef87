"""The events of a run on pub/sub, and the log of its job: one sequence of numbers over all its sources."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final, NotRequired, TypedDict

import structlog
from redis import Redis

from shared.channels import RETENTION_SECONDS, events_channel, job_key, logs_channel, logs_history
from shared.messages import JsonObject, TailLogsMessage
from worker.platform import redact, redact_value
from worker.plugins.output import OutputEntry
from worker.runs.keys import (
    log_subscription,
    messages_key,
    open_logs_key,
    outbox_key,
    relay_token_key,
    run_key,
)
from worker.runs.progress import SECONDS_BETWEEN_PATCHES
from worker.runs.scripts import run_scripts

log = structlog.get_logger(__name__)

LOG_SCRIPT: Final = "log"

OnReportDue = Callable[[str, float], None]
"""Called with a job to report, and the seconds until then. If this process ends first, another reports it."""

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
    operation: str, job: str, *operands: str | float, history_entries: int = MIN_HISTORY_ENTRIES
) -> list[str | float]:
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
        self._call("append_message", job, line_time(), level, *text_lines(text))

    def close_if_complete(self, job: str) -> None:
        """Write the end marker once the run and all relayed logs have ended. Safe to repeat."""
        self._call("close_if_complete", job)

    def _call(self, operation: str, job: str, *operands: str | int) -> None:
        self._scripts.run(LOG_SCRIPT, log_keys(job), *log_args(operation, job, *operands))


def text_lines(text: str) -> list[str]:
    """The lines of a log that a text makes."""
    # A JSON string can hold lone surrogates, which no encoding accepts.
    return text.encode(errors="replace").decode().split("\n")


def subscribe_log(redis: "Redis", message: TailLogsMessage, history_entries: int) -> bool:
    """Let a relay add the log of a Ray job to that of a job; false when that is closed already.

    Repeating it changes nothing. `history_entries` is how many entries the job's history keeps at least.
    """
    connection_options = json.dumps({"agent": message.agent, "protocol": message.protocol})
    operands = (message.ray_job, connection_options)
    arguments = log_args("subscribe", message.job, *operands, history_entries=history_entries)
    if not run_scripts(redis).run(LOG_SCRIPT, log_keys(message.job), *arguments):
        return False
    # After the script: a worker that dies in between has not acknowledged its message, and both are repeated.
    redis.zadd(open_logs_key(), {log_subscription(message.job, message.ray_job): 0}, nx=True)
    run_scripts(redis).run("wake_relay", [relay_token_key()])
    return True


class MessageEntry(TypedDict):
    """A message as the backend's log API takes it, except for the job."""

    event: str
    data: JsonObject
    datetime: str
    level: str
    step: NotRequired[str]


def message_entries(texts: Sequence[str]) -> list[MessageEntry]:
    """Read stored messages, without those that no release writes."""
    entries: list[MessageEntry] = []
    for text in texts:
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, dict):
            entries.append(entry)  # type: ignore[arg-type]
        else:
            log.warning("damaged message left out")
    return entries


class Events:
    """Publishes a run's events on pub/sub and keeps its messages for the next report to the backend."""

    def __init__(self, redis: "Redis", on_report_due: OnReportDue) -> None:
        """`on_report_due` is called when this process is to report a message."""
        self._redis = redis
        self._on_report_due = on_report_due
        self.log = JobLog(redis)
        self._scripts = run_scripts(redis)

    def publish(self, job: str, kind: str, **content: object) -> None:
        """Publish `{"type": kind, ...content}` on the run's channel."""
        self._redis.publish(events_channel(job), json.dumps({"type": kind, **content}))

    def message(
        self, job: str, text: str, *, step: str = "", level: str = "info", in_log: bool = True
    ) -> None:
        """Publish a message for users, log it, and send it to the backend with the next report.

        `in_log`: what a run says when it begins to wait is not logged, for a log takes more than the run. The
        event says so (`"logged": false`), and the public record has what it waits for (`waiting_for`).
        """
        content = redact(text)
        self._add(job, "message", {"content": content}, content, step, level, in_log)

    def entry(self, job: str, output: OutputEntry, *, in_log: bool = True) -> None:
        """The same for what plugin code says, of which the backend gets an entry of the author's kind.

        `in_log`: what a Ray job has printed is in the log already.
        """
        data = redact_value(output.data)
        kind, step = redact(output.event), redact(output.step)
        self._add(job, kind, data, redact(output.text), step, output.level, in_log)

    def _add(
        self, job: str, kind: str, data: JsonObject, content: str, step: str, level: str, in_log: bool = True
    ) -> None:
        event: dict[str, object] = {"type": "message", "level": level, "step": step, "content": content}
        if not in_log:
            event["logged"] = False
        entry: MessageEntry = {
            "event": kind,
            "data": data,
            "datetime": datetime.now(UTC).isoformat(),
            "level": level,
        }
        if step:
            entry["step"] = step
        keys = [*log_keys(job), messages_key(job), outbox_key()]
        delay = SECONDS_BETWEEN_PATCHES
        texts = [events_channel(job), json.dumps(event), json.dumps(entry), job]
        args = log_args(
            "message", job, line_time(), level, *texts, delay, *(text_lines(content) if in_log else ())
        )
        if self._scripts.run(LOG_SCRIPT, keys, *args):
            self._on_report_due(job, delay)

    def pop_messages(self, job: str, limit: int) -> list[MessageEntry]:
        """Remove and return unreported messages; removed first, because users would see a repetition."""
        popped = self._redis.lpop(messages_key(job), limit)
        return message_entries(popped or [])

    def requeue_messages(self, job: str, entries: Sequence[MessageEntry]) -> None:
        """Put messages that were certainly not delivered back in front for the next report."""
        if not entries:
            return
        keys = [run_key(job), messages_key(job)]
        self._scripts.run("requeue_messages", keys, *map(json.dumps, entries[::-1]))
