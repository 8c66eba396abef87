"""Commands that show runs: status, watch."""

import time

import typer
from rich.markup import escape
from rich.table import Table

from shared.channels import job_key
from worker.cli.console import DEFAULT_REDIS_URL, RedisUrl, connect, fail, out
from worker.cli.logs import INTERRUPTED
from worker.cli.progress_view import watch as watch_run
from worker.cli.publish import Job
from worker.runs.keys import LIVE
from worker.runs.recovery import RUN_PREFIX


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
        fail(f"no run of job {job} is known", hint="A run's record expires a day after its end was reported.")
    table = Table("job", "action", "plugin", "status", "step", "overall", "tasks", "seconds", "error")
    for name, record in records.items():
        if record:
            table.add_row(*(escape(text) for text in (name, *_row(record))))
    out.print(table if jobs else "no live runs")


def watch(job: Job, redis_url: RedisUrl = DEFAULT_REDIS_URL) -> None:
    """Show a run's progress above its log until it ends."""
    try:
        followed = watch_run(connect(redis_url), job, out)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    out.print(f"{followed.status} {followed.error}".rstrip(), markup=False)


def _row(record: dict[str, str]) -> list[str]:
    done = f"{record['success']}+{record['failed']}/{record['total']}" if record["total"] != "0" else ""
    until = time.time() if record["status"] in {"PENDING", "RUNNING"} else float(record["updated"])
    return [
        record["action"],
        record["plugin"],
        record["status"],
        record["step"],
        f"{float(record['overall']):.0f} %",
        done,
        f"{max(until - float(record['started']), 0):.0f}",
        record["error"],
    ]
