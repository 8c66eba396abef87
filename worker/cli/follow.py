"""Follow a run in the terminal to its end, and find out before what became of its job."""

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import typer
from redis import Redis
from rich.console import Console

from shared.channels import job_key
from shared.statuses import JobStatus
from worker.cli.console import INTERRUPTED_EXIT_CODE, connect, fail, out
from worker.cli.progress import watch_run
from worker.runs.keys import stop_key
from worker.workflow.dead_letters import DeadLetter, DeadLetters


@dataclass(frozen=True)
class RunRecord:
    """The public record of a run; `status` is None when the job has no run."""

    status: JobStatus | None
    updated: str = ""
    stop_is_remembered: bool = False

    @property
    def has_ended(self) -> bool:
        """Whether the run has ended."""
        return self.status is not None and self.status.is_final

    @classmethod
    def read(cls, redis: Redis, job: str) -> "RunRecord":
        """Read the record of `job`."""
        record = redis.hgetall(job_key(job))
        stop_is_remembered = bool(redis.exists(stop_key(job)))
        if not record:
            return cls(None, stop_is_remembered=stop_is_remembered)
        return cls(JobStatus(record["status"]), _local_time(float(record["updated"])), stop_is_remembered)


def _local_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")


HINT_AFTER_SECONDS: Final = 1.0
POLL_INTERVAL_SECONDS: Final = 0.2


def follow_to_end(job: str, redis_url: str) -> None:
    """Show the run of `job`; the command fails unless the run succeeds. Ctrl-C does not stop the run."""
    redis = connect(redis_url)
    try:
        wait_for_any_key(redis, job, job_key(job), console=out)
        watched = watch_run(redis, job, out)
    except KeyboardInterrupt:
        out.print(
            f"the run goes on: `synapse-worker watch {job}` shows it, `synapse-worker stop {job}` ends it",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(INTERRUPTED_EXIT_CODE) from None
    if _found_job_ended(redis, job, watched.error):
        fail(f"job {job} had already ended in the backend: {watched.status}; nothing was started")
    out.print(watched.end, markup=False)
    if watched.status is not JobStatus.SUCCEEDED:
        raise typer.Exit(1)


def wait_for_any_key(redis: Redis, job: str, *keys: str, console: Console) -> None:
    """Wait until one of the job's keys exists; ends the command when the job's message was rejected."""
    started, hint_shown = time.monotonic(), False
    while not redis.exists(*keys):
        fail_if_rejected(redis, job)
        if not hint_shown and time.monotonic() - started > HINT_AFTER_SECONDS:
            hint_shown = True
            console.print(f"no run of job {job} yet; waiting for a worker that takes it", markup=False)
            console.print("(a job that has already ended in the backend starts none)", style="dim")
        time.sleep(POLL_INTERVAL_SECONDS)


def fail_if_rejected(redis: Redis, job: str) -> None:
    """End the command when the job is FAILED only because its message was rejected."""
    letters = DeadLetters(redis)
    if not letters.is_rejected(job) or letters.is_replayed(job):
        return
    letter = _latest(letters, job)
    if letter is None:
        fail(f"the message of job {job} was rejected", hint="Publish the right one with a new job.")
    fail(
        f"the message was rejected: {letter.reason}",
        hint=f"When that is put right: `synapse-worker dead-letters replay {letter.id}`\n"
        "When the message itself is wrong: publish the right one with a new job.",
    )


def _latest(letters: DeadLetters, job: str) -> DeadLetter | None:
    latest = None
    for letter in letters.all():
        if letter.job == job:
            latest = letter
    return latest


def _found_job_ended(redis: Redis, job: str, error: str) -> bool:
    """Whether the job had ended before: the run then has the job's status, no error and no progress."""
    return not error and redis.hget(job_key(job), "overall") == "0"
