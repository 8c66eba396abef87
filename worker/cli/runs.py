"""Commands that show runs: status, watch, logs."""

import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Annotated

import typer
from redis import Redis
from rich.markup import escape
from rich.table import Table

from shared.channels import job_key, logs_history
from shared.follower import LogEnd, LogFollower, LogLine, parse_log_entry
from worker.cli.console import DEFAULT_REDIS_URL, INTERRUPTED, Job, RedisUrl, connect, err, fail, out, shown
from worker.cli.following import await_any, fail_if_refused, follow_to_end
from worker.runs.keys import HEARTBEATS_KEY
from worker.runs.runs import RUN_PREFIX


def status(
    job: str | None = typer.Argument(None, help="A job; without one, all live runs."),
    redis_url: RedisUrl = DEFAULT_REDIS_URL,
) -> None:
    """Where a run stands, or all live runs."""
    redis = connect(redis_url)
    if job is None:
        members = [str(member) for member in redis.zrange(HEARTBEATS_KEY, 0, -1)]
        jobs = sorted(member.removeprefix(RUN_PREFIX) for member in members if member.startswith(RUN_PREFIX))
    else:
        jobs = [job]
    records = {name: redis.hgetall(job_key(name)) for name in jobs}
    if job is not None and not records[job]:
        fail_if_refused(redis, job)
        fail(f"no run of job {job} is known", hint="A run's record expires a day after its end was reported.")
    shown = {name: _shown(name, record) for name, record in records.items() if record}
    if job is not None:
        out.print(_lines(shown[job]))
    elif shown:
        out.print(_table(list(shown.values())))
    else:
        out.print("no live runs")


def watch(job: Job, redis_url: RedisUrl = DEFAULT_REDIS_URL) -> None:
    """Show a run's progress above its log until it ends."""
    follow_to_end(job, redis_url)


def _shown(job: str, record: dict[str, str]) -> dict[str, str]:
    until = time.time() if record["status"] in {"PENDING", "RUNNING"} else float(record["updated"])
    tasks = f"{record['success']} of {record['total']}" if record["total"] != "0" else ""
    return {
        "job": job,
        "action": record["action"],
        "plugin": record["plugin"],
        "status": record["status"],
        "step": record["step"],
        "overall": f"{float(record['overall']):.0f} %",
        "tasks": tasks + (f", {record['failed']} failed" if record["failed"] != "0" else ""),
        "seconds": f"{max(until - float(record['started']), 0):.0f}",
        "error": record["error"],
    }


def _lines(shown: dict[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in shown.items():
        if value:
            table.add_row(f"[dim]{name}[/]", escape(value))
    return table


def _table(rows: list[dict[str, str]]) -> Table:
    """Live runs, none of which has an error; narrow enough for a terminal of 80 columns."""
    names = [name for name in rows[0] if name not in ("action", "error")]
    table = Table(*names, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(row[name]) for name in names))
    return table


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
            yield parse_log_entry(fields)


def _write(line: LogLine, timestamps: bool, *, prefix: bool) -> None:
    text = shown(line.line) if sys.stdout.isatty() else line.line
    time = f"{line.time} " if timestamps else ""
    sys.stdout.write(f"{time}{line.source} | {text}\n" if prefix else f"{time}{text}\n")
