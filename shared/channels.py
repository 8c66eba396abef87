"""Names of the Redis keys and channels that listeners read (contract: "What listeners hear: Redis").

The braces around the job id are a hash tag: the keys of one job stay together in a Redis Cluster.
"""

DEAD_LETTERS = "synapse:dead_letters"
"""Stream of the messages that the workers could not accept: `{"task", "body", "reason", "time"}`."""

RETENTION_SECONDS = 24 * 60 * 60
"""A job's keys expire this long after its end was reported; a stop without a run is remembered as long."""


def job_key(job: str) -> str:
    """Name the public record of a run.

    Args:
        job: The backend's job id as text, as `shared.messages.Job` holds it.

    Returns:
        The key of a hash of `action`, `plugin`, `status`, `step`, `overall`, `success`, `failed`, `total`,
        `started`, `updated` and `error`.
    """
    return f"synapse:jobs:{{{job}}}"


def events_channel(job: str) -> str:
    """Name the pub/sub channel of a run's events.

    Args:
        job: The backend's job id as text.

    Returns:
        The channel of `{"type": "state" | "progress" | "metrics" | "message", ...}`.
    """
    return f"{job_key(job)}:events"


def logs_channel(job: str) -> str:
    """Name the pub/sub channel of a run's log.

    Args:
        job: The backend's job id as text.

    Returns:
        The channel of `{"seq", "time", "source", "level", "line"}`, numbered from 1 without a gap; the last
        entry is `{"seq", "type": "end", "reason"}`.
    """
    return f"{job_key(job)}:logs"


def logs_history(job: str) -> str:
    """Name the stream that keeps what was published on the log channel, for listeners that come later.

    Args:
        job: The backend's job id as text.

    Returns:
        The key of a stream with the entries of `logs_channel`, capped at the relay's line limit or above.
    """
    return f"{job_key(job)}:logs:history"
