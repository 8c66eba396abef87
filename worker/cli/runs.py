"""The commands that show runs: status, watch, logs."""

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
from worker.cli.console import (
    DEFAULT_REDIS_URL,
    INTERRUPTED_EXIT_CODE,
    Job,
    RedisUrl,
    connect,
    err,
    fail,
    out,
    terminal_line,
)
from worker.cli.follow import fail_if_rejected, follow_to_end, wait_for_any_key
from worker.runs.heartbeat import RUN_PREFIX
from worker.runs.keys import heartbeats_key


def status(
    job: str | None = typer.Argument(None, help="A job; without one, all live runs."),
    redis_url: RedisUrl = DEFAULT_REDIS_URL,
) -> None:
    """Show the state of a run, or all live runs."""
    redis = connect(redis_url)
    if job is None:
        members = [str(member) for member in redis.zrange(heartbeats_key(), 0, -1)]
        jobs = sorted(member.removeprefix(RUN_PREFIX) for member in members if member.startswith(RUN_PREFIX))
    else:
        jobs = [job]
    records = {name: redis.hgetall(job_key(name)) for name in jobs}
    if job is not None and not records[job]:
        fail_if_rejected(redis, job)
        fail(f"no run of job {job} is known", hint="A run's record expires a day after its end was reported.")
    fields_by_job = {name: _status_fields(name, record) for name, record in records.items() if record}
    if job is not None:
        out.print(_details(fields_by_job[job]))
    elif fields_by_job:
        out.print(_overview(list(fields_by_job.values())))
    else:
        out.print("no live runs")


def watch(job: Job, redis_url: RedisUrl = DEFAULT_REDIS_URL) -> None:
    """Show a run's progress above its log until it ends."""
    follow_to_end(job, redis_url)


_COUNTS = ("total", "success", "failed", "overall", "started", "updated")
_TEXTS = ("action", "plugin", "status", "step", "error")


def _status_fields(job: str, record: dict[str, str]) -> dict[str, str]:
    # A record that another program has written may lack fields, and must not hide the others.
    record = dict.fromkeys(_COUNTS, "0") | dict.fromkeys(_TEXTS, "") | record
    until = time.time() if record["status"] in {"PENDING", "RUNNING"} else float(record["updated"])
    tasks = f"{record['success']} of {record['total']}" if record["total"] != "0" else ""
    return {
        "job": job,
        "action": record["action"],
        "plugin": record["plugin"],
        "status": record["status"],
        "step": record["step"],
        "waiting for": record.get("waiting_for", ""),
        "overall": f"{float(record['overall']):.0f} %",
        "tasks": tasks + (f", {record['failed']} failed" if record["failed"] != "0" else ""),
        "seconds": f"{max(until - float(record['started']), 0):.0f}",
        "error": record["error"],
    }


def _details(fields: dict[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in fields.items():
        if value:
            table.add_row(f"[dim]{name}[/]", escape(value))
    return table


def _overview(rows: list[dict[str, str]]) -> Table:
    """A table of live runs, which have no error; narrow enough for a terminal of 80 columns."""
    names = [name for name in rows[0] if name not in ("action", "error", "waiting for")]
    table = Table(*names, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(row[name]) for name in names))
    return table


Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until the log ends.")]
Tail = Annotated[int | None, typer.Option("--tail", "-n", min=0, help="Only so many of the last lines.")]
Timestamps = Annotated[bool, typer.Option("--timestamps", "-t", help="Show the time of each line.")]
Source = Annotated[str | None, typer.Option(help="Only this source: run, or a Ray job; without a prefix.")]


def logs(
    job: Job,
    follow: Follow = False,
    tail: Tail = None,
    timestamps: Timestamps = False,
    source: Source = None,
    redis_url: RedisUrl = DEFAULT_REDIS_URL,
) -> None:
    """Show the log of a job: the run's own messages, and every log that is relayed for it."""
    redis = connect(redis_url)
    try:
        reason = _print_log(redis, job, follow=follow, tail=tail, timestamps=timestamps, source=source)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED_EXIT_CODE) from None
    except BrokenPipeError:
        # The reader, such as `| head`, has closed the pipe. Python would report that again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    if reason not in ("", "ended"):
        err.print(f"[dim]end of the log: {reason}[/]", highlight=False)


def _print_log(
    redis: Redis, job: str, *, follow: bool, tail: int | None, timestamps: bool, source: str | None
) -> str:
    """Print the log; returns the reason of its end, empty when it has not ended."""
    if follow:
        wait_for_any_key(redis, job, logs_history(job), job_key(job), console=err)
    history, last_seq, reason = _read_history(redis, job)
    if not last_seq:
        record = redis.hgetall(job_key(job))
        if not record and not follow:
            fail_if_rejected(redis, job)
            fail(f"no log of job {job} is known", hint="With --follow the command waits for it.")
        if not follow or "waiting_for" in record:
            _print_state(job, record)
    lines = [line for line in history if source in (None, line.source)]
    for line in lines if tail is None else lines[len(lines) - min(tail, len(lines)) :]:
        _print_line(line, timestamps, prefix=source is None)
    sys.stdout.flush()
    if reason or not follow:
        return reason
    follower = LogFollower(redis, job, after=last_seq)
    for line in follower:
        if source in (None, line.source):
            _print_line(line, timestamps, prefix=source is None)
            sys.stdout.flush()
    return follower.reason


def _print_state(job: str, record: dict[str, str]) -> None:
    """Say beside the log what a run does that has no line in it yet."""
    waiting_for = record.get("waiting_for")
    does = f"waits for {waiting_for}" if waiting_for else f"is {record['status']}"
    err.print(f"[dim]no lines yet; job {escape(job)} {escape(does)}[/]", highlight=False, soft_wrap=True)


def _read_history(redis: Redis, job: str) -> tuple[deque[LogLine], int, str]:
    """The lines so far, the last sequence number, and the reason of the end, empty before the end."""
    lines: deque[LogLine] = deque()
    last_seq, reason = 0, ""
    for entry in _read_entries(redis, job):
        last_seq = entry.seq
        if isinstance(entry, LogEnd):
            reason = entry.reason
        else:
            lines.append(entry)
    return lines, last_seq, reason


def _read_entries(redis: Redis, job: str) -> Iterator[LogLine | LogEnd]:
    start = "-"
    while page := redis.xrange(logs_history(job), min=start, count=1000):
        for id_, fields in page:
            start = f"({id_}"
            yield parse_log_entry(fields)


def _print_line(line: LogLine, timestamps: bool, *, prefix: bool) -> None:
    text = terminal_line(line.line) if sys.stdout.isatty() else line.line
    time = f"{line.time} " if timestamps else ""
    sys.stdout.write(f"{time}{line.source} | {text}\n" if prefix else f"{time}{text}\n")
