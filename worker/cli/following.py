"""A run in the terminal from its message to its end: taken, refused, or is nobody there to take it?"""

import time
from typing import Final

import typer
from redis import Redis

from shared.channels import job_key
from shared.statuses import JobStatus
from worker.cli.console import INTERRUPTED, connect, fail, out
from worker.cli.progress_view import watch
from worker.dead_letters import DeadLetters

SECONDS_BEFORE_HINT: Final = 5.0
SECONDS_BETWEEN_LOOKS: Final = 0.2


def follow_to_end(job: str, redis_url: str) -> None:
    """Show the run of `job`; the command fails unless it succeeds. Ctrl-C ends the show, not the run."""
    redis = connect(redis_url)
    try:
        _await_run(redis, job)
        followed = watch(redis, job, out)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    out.print(f"{followed.status} {followed.error}".rstrip(), markup=False)
    if followed.status is not JobStatus.SUCCEEDED:
        raise typer.Exit(1)


def _await_run(redis: Redis, job: str) -> None:
    """Wait until there is a run; ends the command when the message was refused."""
    letters = DeadLetters(redis)
    begun, told = time.monotonic(), False
    while not redis.exists(job_key(job)):
        if letters.is_refused(job) and not letters.is_replayed(job):
            fail(
                f"the message was refused: {_reason(letters, job)}",
                hint="It is kept: `synapse-worker dead-letters list`. Publish the right one with a new job.",
            )
        if not told and time.monotonic() - begun > SECONDS_BEFORE_HINT:
            told = True
            out.print(f"no run of job {job} yet; waiting for a worker that takes it", markup=False)
            out.print("(a job that has already ended in the backend starts none)", style="dim")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _reason(letters: DeadLetters, job: str) -> str:
    reason = "see the dead letters"
    for letter in letters.all():
        if str((letter.arguments() or {}).get("job")) == job:
            reason = letter.reason
    return reason
