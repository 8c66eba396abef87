"""Private Redis keys of a run, beside the public ones of `shared.channels`."""

from shared.channels import job_key

HEARTBEATS_KEY = "synapse:live"
"""Sorted set: every live run and waiting room, by the time at which its next sign of life is due."""

OVERDUE_COUNTS_KEY = "synapse:live:overdue"
"""Hash: how many times in a row a member was found overdue."""


def run_key(job: str) -> str:
    """Hash: the message, where the run stands, and what its steps found out."""
    return f"{job_key(job)}:run"


def stop_key(job: str) -> str:
    """Set when a stop came before the job's message."""
    return f"{job_key(job)}:stop"


def lock_key(job: str, step: str) -> str:
    """Held by who works on the step."""
    return f"{job_key(job)}:lock:{step}"


def progress_key(job: str) -> str:
    """Hash: percent by step."""
    return f"{job_key(job)}:progress"


def polls_key(job: str) -> str:
    """Hash: generations of polls of steps and of their parts; apart, as there may be one for each chunk."""
    return f"{job_key(job)}:polls"


def newest_field(step_name: str) -> str:
    """Field of the polls: the generation that a poll of the step must have to go on."""
    return f"generation:{step_name}"


def claimed_field(step_name: str) -> str:
    """Field of the polls: the newest generation that has begun."""
    return f"polled:{step_name}"


def messages_key(job: str) -> str:
    """List: messages for the user that the backend has not got yet."""
    return f"{job_key(job)}:messages"
