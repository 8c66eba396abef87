"""Private Redis keys of a run and the fields of its hash, beside the public keys of `shared.channels`.

Workers of older and newer versions read the same keys and fields, so a name keeps its meaning.
"""

from enum import StrEnum

from shared.channels import job_key, redis_prefix


def heartbeats_key() -> str:
    """Sorted set: every live run and waiting list, by the time at which its next heartbeat is due.

    `slots.lua` makes this name itself, from that of its own keys.
    """
    return f"{redis_prefix()}:live"


def overdue_counts_key() -> str:
    """Hash: how many times in a row a member was found overdue."""
    return f"{redis_prefix()}:live:overdue"


def changes_channel() -> str:
    """Pub/sub channel: what changes of any run's public record, and the ids of new dead letters.

    Scripts make its name themselves, from the key of the record (`publish_change` of `prelude.lua`).
    """
    return f"{redis_prefix()}:changes"


def outbox_key() -> str:
    """Sorted set: the jobs with something to report, by the time at which any worker may report it."""
    return f"{redis_prefix()}:outbox"


def webhooks_key() -> str:
    """Sorted set: the jobs whose end the webhook has not got, by the time at which any worker may send it."""
    return f"{redis_prefix()}:webhooks"


def ended_runs_key(status: str = "") -> str:
    """Sorted set: the jobs whose runs have ended, of all or with one status, by the time of the end.

    Scripts make these names themselves, from the key of the record (`keep_ended_run` of `prelude.lua`).
    """
    return f"{redis_prefix()}:ended:{status}" if status else f"{redis_prefix()}:ended"


def open_logs_key() -> str:
    """Sorted set: every relayed log, scored by the time (Redis's clock) at which its claim expires."""
    return f"{redis_prefix()}:{{logs}}:open"


def relay_token_key() -> str:
    """List: a token while there is something to claim, which wakes the relay that has waited longest."""
    return f"{redis_prefix()}:{{logs}}:token"


def log_subscription(job: str, ray_job: str) -> str:
    """The member of `open_logs_key` for a Ray job's log; neither id can contain the separator."""
    return f"{job}/{ray_job}"


def ended_logs_key() -> str:
    """Sorted set: the jobs whose logs may have ended and are not measured yet."""
    return f"{redis_prefix()}:{{logs}}:ended"


def kept_logs_key() -> str:
    """Sorted set: the jobs whose ended logs are kept, by the time at which they were measured."""
    return f"{redis_prefix()}:{{logs}}:kept"


def kept_log_sizes_key() -> str:
    """Hash: the bytes that each of these logs takes, and their sum."""
    return f"{redis_prefix()}:{{logs}}:kept:sizes"


def entry_deaths_key(message_id: str) -> str:
    """Set: a token of each delivery of an entry message whose worker died, see `counting_deaths`."""
    return f"{redis_prefix()}:entry_deaths:{message_id}"


class RunField(StrEnum):
    """Fields of `run_key`. Scripts reach them as `RUN.end` and so on."""

    MESSAGE = "message"
    """JSON of the message from which the run was created, with the name of its task."""
    QUEUE = "queue"
    """Where messages of steps go that have no queue of their own."""
    POSITION = "position"
    STEP = "step"
    """The step at which the run stands, and its own queue, which may be empty."""
    STEP_QUEUE = "step_queue"
    PRIORITY = "priority"
    """The Celery priority of the run's message, and of those of its steps; absent where it is 0."""
    TRACEPARENT = "traceparent"
    """The context of the run's trace, of which its steps are children; absent where traces are off."""
    WAITS_IN = "waits_in"
    """The key of the sorted set of jobs among which the run waits, which it leaves when it ends."""
    ENDED = "end"
    """JSON of the status and the result; there once the run has ended."""
    END_SENT = "end_sent"
    """There once the report of the end was scheduled."""
    REPORTED = "reported"
    """There once the backend has the end."""
    VERSION = "version"
    """There while there is something to report, and changed by each change of it."""
    VERSION_SENT = "version_sent"
    """The version that the backend has of a worker of an older release, which keeps both."""
    RUNNING_SENT = "running_sent"
    """There once the backend has the status RUNNING."""
    REPORT_SCHEDULED_AT = "report_scheduled"
    """Redis's time at which a worker of an older release published the message of a report."""


BEGUN_PREFIX = "begun:"
"""Begins the field that counts for workers of older releases how often a step was claimed."""

STEP_TIME_PREFIX = "@"
"""Begins the fields of the public record that say when each step began, see `begun_steps`."""

STATE_PREFIX = "finding:"
"""Begins the fields of the run's state."""


def run_key(job: str) -> str:
    """Hash: the message, where the run stands, and its state. `RunStore` and scripts read and write it."""
    return f"{job_key(job)}:run"


def ended_run_key(job: str) -> str:
    """JSON: the public record of a run that has ended, and its `message`; kept beyond the other keys."""
    return f"{ended_runs_key()}:{{{job}}}"


def failed_tasks_key(job: str) -> str:
    """List: the ids of all tasks that failed; kept beyond the other keys once the run has ended."""
    return f"{ended_run_key(job)}:failed_tasks"


def stop_key(job: str) -> str:
    """Set when a stop came before the job's message."""
    return f"{job_key(job)}:stop"


def lock_key(job: str, step: str) -> str:
    """The lock of a step; its value is the token of the delivery that holds it."""
    return f"{job_key(job)}:lock:{step}"


def rejected_end_key(job: str) -> str:
    """Hash: fields of `run_key` and of the record for a job that has no run, as its message was rejected."""
    return f"{job_key(job)}:rejected_end"


def progress_key(job: str) -> str:
    """Hash: percent by step."""
    return f"{job_key(job)}:progress"


def polls_key(job: str) -> str:
    """Hash: generations and deliveries of steps and of their parts. Apart, as each chunk may have them."""
    return f"{job_key(job)}:polls"


def newest_field(step_name: str) -> str:
    """Field of `polls_key`: the generation that a poll of the step must have to go on."""
    return f"generation:{step_name}"


def claimed_field(step_name: str) -> str:
    """Field of `polls_key`: the newest generation that has begun."""
    return f"polled:{step_name}"


def deliveries_field(step_name: str) -> str:
    """Field of `polls_key`: the step's deliveries that have begun and not ended, see `begin_delivery`."""
    return f"deliveries:{step_name}"


def patched_key(job: str) -> str:
    """There for a second after a report: between two there is at least as much."""
    return f"{job_key(job)}:patched"


def messages_key(job: str) -> str:
    """List: messages for the user that the backend has not been sent."""
    return f"{job_key(job)}:messages"


def workflow_keys_key(job: str) -> str:
    """Set: keys of the workflow that expire with the run."""
    return f"{job_key(job)}:keys"
