"""The commands that show runs: status, runs list, watch, logs."""

import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import chain, islice
from typing import Annotated, Any, Final

import typer
from redis import Redis
from rich.markup import escape
from rich.table import Table

from shared.channels import job_key, logs_history
from shared.follower import LogEnd, LogFollower, LogLine, parse_log_entry
from shared.statuses import JobStatus, is_final_status
from worker.cli.console import (
    DEFAULT_REDIS_URL,
    INTERRUPTED_EXIT_CODE,
    AsJson,
    Job,
    RedisUrl,
    connect,
    err,
    fail,
    out,
    print_json,
    print_table,
    table_cell,
    terminal_line,
)
from worker.cli.follow import fail_if_rejected, follow_to_end, wait_for_any_key
from worker.lua import redis_time
from worker.runs.heartbeat import RUN_PREFIX
from worker.runs.keys import heartbeats_key
from worker.runs.model import begun_steps, finite_number
from worker.workflow.ended_runs import EndedRuns

RUNS_READ_AT_ONCE: Final = 500


app = typer.Typer(add_completion=False, help="Runs: those that are live, and those that have ended.")

LIVE: Final = (JobStatus.PENDING, JobStatus.RUNNING)


def status(
    job: str | None = typer.Argument(None, help="A job; without one, all live runs."),
    as_json: AsJson = False,
    redis_url: RedisUrl = DEFAULT_REDIS_URL,
) -> None:
    """Show the state of a run, or all live runs."""
    redis = connect(redis_url)
    if job is None:
        runs = list(_live_runs(redis))
        _print_runs(runs, "no live runs", as_json=as_json)
        return
    record = redis.hgetall(job_key(job))
    if not record:
        ended = EndedRuns(redis).get(job)
        if ended is None:
            fail_if_rejected(redis, job)
            fail(
                f"no run of job {job} is known",
                hint="Its message may still wait in a queue that no worker reads (synapse-worker doctor), or"
                " be a dead letter (synapse-worker dead-letters list). An ended run is kept for"
                " WORKER_ENDED_RUNS_MAX_AGE_SECONDS, by default a week, and no longer than all fit into"
                " WORKER_ENDED_RUNS_MAX_MB.",
            )
        record = ended.record
    run = _run_fields(job, record)
    if as_json:
        print_json(run)
    else:
        out.print(_details(run))


@app.callback()
def _group() -> None:
    """Keep `list` a command of its own while it is the only one."""


@app.command("list")
def list_runs(
    status: Annotated[
        JobStatus | None,
        typer.Option(help="Only those with this status.", case_sensitive=False),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(help="Of the ended ones only those of the last, for example, 30m, 2h or 7d."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    as_json: AsJson = False,
    redis_url: RedisUrl = DEFAULT_REDIS_URL,
) -> None:
    """Live runs, then those that have ended, the last one first."""
    seconds = None if since is None else _seconds(since)
    redis = connect(redis_url)
    found: Iterator[tuple[str, dict[str, str]]] = iter(())
    if status is None or status in LIVE:
        # One whose end is not reported yet is among the ended ones.
        wanted = LIVE if status is None else (status,)
        found = ((job, record) for job, record in _live_runs(redis) if record.get("status") in wanted)
    if status is None or status not in LIVE:
        start = 0.0 if seconds is None else redis_time(redis) - seconds
        ended = EndedRuns(redis).newest(status, start)
        found = chain(found, ((run.job, run.record) for run in ended))
    runs = list(islice(found, limit + 1))
    _print_runs(runs[:limit], "no such runs", as_json=as_json)
    if len(runs) > limit:
        err.print(f"[dim]there are more than {limit}: --limit shows them[/]", highlight=False)


def _live_runs(redis: Redis) -> Iterator[tuple[str, dict[str, str]]]:
    """Jobs and public records of the runs that have not ended, or whose end is not reported."""
    members = [str(member) for member in redis.zrange(heartbeats_key(), 0, -1)]
    jobs = sorted(member.removeprefix(RUN_PREFIX) for member in members if member.startswith(RUN_PREFIX))
    for start in range(0, len(jobs), RUNS_READ_AT_ONCE):
        page = jobs[start : start + RUNS_READ_AT_ONCE]
        with redis.pipeline(transaction=False) as pipe:
            for job in page:
                pipe.hgetall(job_key(job))
            records = pipe.execute()
        for job, record in zip(page, records, strict=True):
            if record:
                yield job, record


_UNITS: Final = {"s": 1, "m": 60, "h": 60 * 60, "d": 24 * 60 * 60, "w": 7 * 24 * 60 * 60}


def _seconds(text: str) -> float:
    found = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    if not found:
        fail(f"--since {text}: must be a number and one of s, m, h, d, w, for example 2h")
    return int(found[1]) * _UNITS[found[2]]


def watch(job: Job, redis_url: RedisUrl = DEFAULT_REDIS_URL) -> None:
    """Show a run's progress above its log until it ends."""
    follow_to_end(job, redis_url)


_COUNTS = ("total", "success", "failed", "overall", "started", "updated")
_TEXTS = ("action", "plugin", "status", "step", "error", "waiting_for")


def _run_fields(job: str, record: dict[str, str]) -> dict[str, Any]:
    """A run as programs get it. A record that another program has written must not hide the others."""
    numbers = {name: finite_number(record.get(name)) or 0.0 for name in _COUNTS}
    texts = {name: record.get(name, "") for name in _TEXTS}
    has_ended = is_final_status(texts["status"])
    until = numbers["updated"] if has_ended else time.time()
    return {
        "job": job,
        **{name: texts[name] for name in ("action", "plugin", "status", "step", "waiting_for")},
        "overall": numbers["overall"],
        **{name: int(numbers[name]) for name in ("total", "success", "failed")},
        "started": _utc(numbers["started"]),
        "ended": _utc(numbers["updated"]) if has_ended else None,
        "seconds": round(max(until - numbers["started"], 0.0)),
        "error": texts["error"],
        "steps": _step_fields(record, until),
    }


def _step_fields(record: dict[str, str], until: float) -> list[dict[str, Any]]:
    """The steps that a run has begun, until its end or now; what is not known of one is None."""
    steps = begun_steps(record)
    ends = [*(step.since for step in steps[1:]), until]
    return [
        {
            "name": step.name,
            "began": None if step.since is None else _utc(step.since, "milliseconds"),
            "seconds": None if step.since is None or end is None else round(max(end - step.since, 0.0), 3),
        }
        for step, end in zip(steps, ends, strict=False)
    ]


def _utc(seconds: float, timespec: str = "seconds") -> str | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=timespec)
    except (OverflowError, OSError, ValueError):
        return None


def _cells(run: dict[str, Any]) -> dict[str, str]:
    """The same for the terminal."""
    tasks = f"{run['success']} of {run['total']}" if run["total"] else ""
    return {
        **{name: run[name] for name in ("job", "action", "plugin", "status", "step")},
        "waiting for": run["waiting_for"],
        "overall": f"{run['overall']:.0f} %",
        "tasks": tasks + (f", {run['failed']} failed" if run["failed"] else ""),
        "ended": _local_time(run["ended"]),
        "seconds": str(run["seconds"]),
        "error": run["error"],
        "steps": "\n".join(map(_step_line, run["steps"])),
    }


def _step_line(step: dict[str, Any]) -> str:
    took = "" if step["seconds"] is None else f"  {step['seconds']:.1f} s"
    return f"{step['name']:<24}  {_local_time(step['began']) or 'at an unknown time'}{took}"


def _local_time(time: str | None) -> str:
    return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S") if time else ""


def _details(run: dict[str, Any]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in _cells(run).items():
        if value:
            table.add_row(f"[dim]{name}[/]", escape(value))
    return table


def _print_runs(found: Iterable[tuple[str, dict[str, str]]], empty: str, *, as_json: bool) -> None:
    runs = [_run_fields(job, record) for job, record in found]
    if as_json:
        print_json(runs)
    else:
        print_table(_overview([_cells(run) for run in runs]), empty=empty)


def _overview(rows: list[dict[str, str]]) -> Table:
    """A table of runs; what no row has is left out, so that it is narrow enough for a terminal."""
    hidden = {"action", "waiting for", "steps"} | {
        name for name in ("ended", "error") if not any(row[name] for row in rows)
    }
    names = [name for name in _cells(_run_fields("", {})) if name not in hidden]
    table = Table(box=None, pad_edge=False)
    for name in names:
        # Long texts are wrapped and never cut; a job and a time are copied.
        table.add_column(name, no_wrap=name == "job", overflow="fold")
    for row in rows:
        table.add_row(*(table_cell(row[name]) for name in names))
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
