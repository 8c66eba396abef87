"""The log of a job in Redis: one numbering over all that is told of it, kept, sent, and ended once.

Whoever writes to it runs the one script `lua/log.lua`: a run for its own messages, a relay for every log that
it follows for the job.
"""

from datetime import UTC, datetime
from typing import Final

from redis import Redis

from shared.channels import job_key, logs_channel, logs_history
from worker.runs.keys import run_key
from worker.runs.scripts import Scripts

SCRIPT: Final = "log"

ROOM_FOR_MESSAGES: Final = 10_000
"""Entries of the history beyond the most lines that are relayed."""

SHORTEST_HISTORY: Final = 50_000 + ROOM_FOR_MESSAGES
"""Entries that a history keeps at least, trimmed only beyond; one with a larger limit of lines keeps more."""

DAY_SECONDS: Final = 86_400


def log_state_key(job: str) -> str:
    """Hash: the last number, and of every log that is followed where it stands and who follows it."""
    return f"{job_key(job)}:logs:state"


def log_keys(job: str) -> list[str]:
    """The keys of the script."""
    return [log_state_key(job), logs_history(job), run_key(job)]


def log_args(operation: str, job: str, *own: str | int, longest: int = SHORTEST_HISTORY) -> list[str | int]:
    """The arguments of the script, `own` being those of the operation."""
    return [operation, logs_channel(job), longest, DAY_SECONDS, *own]


def now() -> str:
    """The time of a line."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class LogChannel:
    """The log as a run writes it."""

    def __init__(self, redis: "Redis") -> None:
        self._scripts = Scripts(redis, "worker.runs")

    def say(self, job: str, text: str, level: str) -> None:
        """Add a message of the run, a line a line. One of a run that is over, or unknown, goes nowhere."""
        # JSON can spell halves of characters that no encoding can carry further.
        lines = text.encode(errors="replace").decode().split("\n")
        self._run("say", job, now(), level, *lines)

    def settle(self, job: str, *, reported: bool = False) -> None:
        """Say that the log is over, if the run and every followed log are. Safe to repeat.

        `reported`: the backend has the run's end, so what is over expires in a day.
        """
        self._run("settle", job, "1" if reported else "")

    def _run(self, operation: str, job: str, *own: str | int) -> None:
        self._scripts.run(SCRIPT, log_keys(job), *log_args(operation, job, *own))
