"""A run in the terminal from its message to its end, and what is known of its job before."""

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import typer
from redis import Redis
from rich.console import Console

from shared.channels import job_key
from shared.statuses import JobStatus
from worker.cli.console import INTERRUPTED, connect, fail, out
from worker.cli.progress import watch
from worker.runs.keys import stop_key
from worker.workflow.dead_letters import DeadLetter, DeadLetters


@dataclass(frozen=True)
class KnownRun:
    """A run as its public record shows it; `status` is None where there is none."""

    status: JobStatus | None
    updated: str = ""
    stop_is_remembered: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether its job is over."""
        return self.status is not None and self.status.is_final

    @classmethod
    def of(cls, redis: Redis, job: str) -> "KnownRun":
        """Read the record of `job`."""
        record = redis.hgetall(job_key(job))
        stopped = bool(redis.exists(stop_key(job)))
        if not record:
            return cls(None, stop_is_remembered=stopped)
        return cls(JobStatus(record["status"]), _local(float(record["updated"])), stopped)


def _local(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")


SECONDS_BEFORE_HINT: Final = 1.0
SECONDS_BETWEEN_LOOKS: Final = 0.2


def follow_to_end(job: str, redis_url: str) -> None:
    """Show the run of `job`; the command fails unless it succeeds. Ctrl-C ends the show, not the run."""
    redis = connect(redis_url)
    try:
        await_any(redis, job, job_key(job), console=out)
        followed = watch(redis, job, out)
    except KeyboardInterrupt:
        out.print(
            f"the run goes on: `synapse-worker watch {job}` shows it, `synapse-worker stop {job}` ends it",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED) from None
    if _never_began(redis, job, followed.error):
        fail(f"job {job} had already ended in the backend: {followed.status}; nothing was started")
    out.print(followed.end, markup=False)
    if followed.status is not JobStatus.SUCCEEDED:
        raise typer.Exit(1)


def await_any(redis: Redis, job: str, *keys: str, console: Console) -> None:
    """Wait until one of the job's keys is there; ends the command when its message was refused."""
    begun, told = time.monotonic(), False
    while not redis.exists(*keys):
        fail_if_refused(redis, job)
        if not told and time.monotonic() - begun > SECONDS_BEFORE_HINT:
            told = True
            console.print(f"no run of job {job} yet; waiting for a worker that takes it", markup=False)
            console.print("(a job that has already ended in the backend starts none)", style="dim")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def fail_if_refused(redis: Redis, job: str) -> None:
    """End the command when the job is FAILED for nothing but a message that was refused."""
    letters = DeadLetters(redis)
    if not letters.is_rejected(job) or letters.is_replayed(job):
        return
    letter = _newest(letters, job)
    if letter is None:
        fail(f"the message of job {job} was refused", hint="Publish the right one with a new job.")
    fail(
        f"the message was refused: {letter.reason}",
        hint=f"When that is put right: `synapse-worker dead-letters replay {letter.id}`\n"
        "When the message itself is wrong: publish the right one with a new job.",
    )


def _newest(letters: DeadLetters, job: str) -> DeadLetter | None:
    newest = None
    for letter in letters.all():
        if letter.job == job:
            newest = letter
    return newest


def _never_began(redis: Redis, job: str, error: str) -> bool:
    """Whether the run found its job over: it then takes the backend's status, without error or progress."""
    return not error and redis.hget(job_key(job), "overall") == "0"
