"""Names of the Redis keys and channels that listeners read (contract: "What listeners hear: Redis").

The braces around the job id are a hash tag: the keys of one job stay together.
"""

import os

PREFIX_VARIABLE = "WORKER_REDIS_PREFIX"
"""The variable that names the prefix of an installation, for its workers and for who listens to them."""

DEFAULT_PREFIX = "synapse"

RETENTION_SECONDS = 24 * 60 * 60
"""A job's keys expire this long after its end was reported; a stop without a run is remembered as long."""


def redis_prefix(prefix: str | None = None) -> str:
    """Name the prefix of an installation's keys and channels.

    Args:
        prefix: The prefix, where it is known; None for the one that the environment names.

    Returns:
        `prefix`, else the value of `WORKER_REDIS_PREFIX`, else `synapse`.
    """
    return prefix or os.environ.get(PREFIX_VARIABLE) or DEFAULT_PREFIX


def dead_letters_key(*, prefix: str | None = None) -> str:
    """Name the stream of the messages that the workers could not accept.

    Args:
        prefix: As for `redis_prefix`.

    Returns:
        The key of a stream of `{"task", "body", "reason", "time"}`.
    """
    return f"{redis_prefix(prefix)}:dead_letters"


def job_key(job: str, *, prefix: str | None = None) -> str:
    """Name the public record of a run.

    Args:
        job: The backend's job id as text, as `shared.messages.Job` holds it.
        prefix: As for `redis_prefix`.

    Returns:
        The key of a hash of `action`, `plugin`, `status`, `step`, `overall`, `success`, `failed`, `total`,
        `started`, `updated` and `error`; while the run waits also of `waiting_for`, such as
        `pre-processor digits@1.0.0`; for each step that has begun also of `@` and its name, with the
        milliseconds from `started` until then (negative where it is only known that it began before that).
    """
    return f"{redis_prefix(prefix)}:jobs:{{{job}}}"


def events_channel(job: str, *, prefix: str | None = None) -> str:
    """Name the pub/sub channel of a run's events.

    Args:
        job: The backend's job id as text.
        prefix: As for `redis_prefix`.

    Returns:
        The channel of `{"type": "state" | "progress" | "metrics" | "message", ...}`.
    """
    return f"{job_key(job, prefix=prefix)}:events"


def logs_channel(job: str, *, prefix: str | None = None) -> str:
    """Name the pub/sub channel of a run's log.

    Args:
        job: The backend's job id as text.
        prefix: As for `redis_prefix`.

    Returns:
        The channel of `{"seq", "time", "source", "level", "line"}`, numbered from 1 without a gap; the last
        entry is `{"seq", "type": "end", "reason"}`.
    """
    return f"{job_key(job, prefix=prefix)}:logs"


def logs_history(job: str, *, prefix: str | None = None) -> str:
    """Name the stream that keeps what was published on the log channel, for listeners that come later.

    Args:
        job: The backend's job id as text.
        prefix: As for `redis_prefix`.

    Returns:
        The key of a stream with the entries of `logs_channel`, capped at the relay's line limit or above.
    """
    return f"{job_key(job, prefix=prefix)}:logs:history"
