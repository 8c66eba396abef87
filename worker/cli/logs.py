"""The command `logs`: what a run said and what its Ray jobs printed."""

import os
import sys
from collections import deque
from collections.abc import Iterator
from typing import Annotated

import typer
from redis import Redis

from shared.channels import job_key, logs_history
from shared.follower import LogEnd, LogFollower, LogLine, entry_of
from worker.cli.console import DEFAULT_REDIS_URL, INTERRUPTED, Job, RedisUrl, connect, err, fail
from worker.cli.following import await_any, fail_if_refused
from worker.cli.terminal_text import shown

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the log ends.")]
Tail = Annotated[int | None, typer.Option("--tail", "-n", min=0, help="Only so many lines of what there is.")]
Times = Annotated[bool, typer.Option("--timestamps", "-t", help="Show when each line came.")]
Source = Annotated[str | None, typer.Option(help="Only this source: run, or a Ray job; without a prefix.")]


def logs(
    job: Job,
    follow: Follow = False,
    tail: Tail = None,
    timestamps: Times = False,
    source: Source = None,
    redis_url: RedisUrl = DEFAULT_REDIS_URL,
) -> None:
    """Show the log of a job: the run's own messages, and every log that is followed for it."""
    redis = connect(redis_url)
    try:
        reason = _show(redis, job, follow=follow, tail=tail, timestamps=timestamps, source=source)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # `| head` has read enough; Python would complain once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    if reason not in ("", "ended"):
        err.print(f"[dim]end of the log: {reason}[/]", highlight=False)


def _show(
    redis: Redis, job: str, *, follow: bool, tail: int | None, timestamps: bool, source: str | None
) -> str:
    """Write lines as they come; returns why the log ended, empty when it has not."""
    if follow:
        await_any(redis, job, logs_history(job), job_key(job), console=err)
    written, last, reason = _history(redis, job)
    if not last and not follow:
        fail_if_refused(redis, job)
        fail(f"no log of job {job} is known", hint="With --follow the command waits for it.")
    lines = [line for line in written if source in (None, line.source)]
    for line in lines if tail is None else lines[len(lines) - min(tail, len(lines)) :]:
        _write(line, timestamps, prefix=source is None)
    sys.stdout.flush()
    if reason or not follow:
        return reason
    follower = LogFollower(redis, job, after=last)
    for line in follower:
        if source in (None, line.source):
            _write(line, timestamps, prefix=source is None)
            sys.stdout.flush()
    return follower.reason


def _history(redis: Redis, job: str) -> tuple[deque[LogLine], int, str]:
    """Everything so far, the number of its last entry, and why it ended if it has."""
    lines: deque[LogLine] = deque()
    last, reason = 0, ""
    for entry in _entries(redis, job):
        last = entry.seq
        if isinstance(entry, LogEnd):
            reason = entry.reason
        else:
            lines.append(entry)
    return lines, last, reason


def _entries(redis: Redis, job: str) -> Iterator[LogLine | LogEnd]:
    start = "-"
    while page := redis.xrange(logs_history(job), min=start, count=1000):
        for id_, fields in page:
            start = f"({id_}"
            yield entry_of(fields)


def _write(line: LogLine, timestamps: bool, *, prefix: bool) -> None:
    text = shown(line.line) if sys.stdout.isatty() else line.line
    time = f"{line.time} " if timestamps else ""
    sys.stdout.write(f"{time}{line.source} | {text}\n" if prefix else f"{time}{text}\n")
