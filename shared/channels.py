"""Names of the Redis keys that listeners read. The braces keep a job's keys together in a Redis Cluster."""

DEAD_LETTERS = "synapse:dead_letters"


def job_key(job: str) -> str:
    """The public record of a run: a hash of action, plugin, status, step, overall, success, and so on."""
    return f"synapse:jobs:{{{job}}}"


def events_channel(job: str) -> str:
    """Pub/sub: `{"type": "state" | "progress" | "metrics" | "message", ...}`."""
    return f"{job_key(job)}:events"


def logs_channel(job: str) -> str:
    """Pub/sub: `{"seq", "time", "source", "level", "line"}`, the last `{"seq", "type": "end", "reason"}`."""
    return f"{job_key(job)}:logs"


def logs_history(job: str) -> str:
    """Stream of what went over the log channel, for whoever comes late."""
    return f"{job_key(job)}:logs:history"
