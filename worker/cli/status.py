"""Commands that show runs: status, watch."""

import time

import typer
from rich.markup import escape
from rich.table import Table

from shared.channels import job_key
from worker.cli.console import DEFAULT_REDIS_URL, Job, RedisUrl, connect, fail, out
from worker.cli.following import fail_if_refused, follow_to_end
from worker.runs.keys import LIVE
from worker.runs.runs import RUN_PREFIX


def status(
    job: str | None = typer.Argument(None, help="A job; without one, all live runs."),
    redis_url: RedisUrl = DEFAULT_REDIS_URL,
) -> None:
    """Where a run stands, or all live runs."""
    redis = connect(redis_url)
    if job is None:
        members = [str(member) for member in redis.zrange(LIVE, 0, -1)]
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
