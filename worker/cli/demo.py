"""The command `demo`: see the whole product work, on real input, on this machine."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from redis import Redis
from rich.table import Table

from shared import JobStatus, Publisher, ToTaskMessage
from worker.cli.console import INTERRUPTED, fail, out
from worker.cli.interrupts import interruptible
from worker.cli.progress import Followed, watch
from worker.cli.sandbox import EXAMPLE_PLUGINS, say, starting

if TYPE_CHECKING:
    from worker.sandbox import Sandbox

PLUGIN = "digits@1.0.0"
GOOD_ACCURACY = 0.9


@dataclass(frozen=True)
class Row:
    """One run of the demo in its closing table."""

    method: str
    followed: Followed
    result: dict[str, Any]
    accuracy: float


def demo() -> None:
    """Deploy a digits classifier on Ray Serve and pre-annotate 899 images with it, then from files."""
    started = time.monotonic()
    try:
        with interruptible():
            rows = _run_demo()
    except KeyboardInterrupt:
        out.print("interrupted; everything that the demo started has ended")
        raise typer.Exit(INTERRUPTED) from None
    out.print(_table(rows))
    for row in rows:
        out.print(_seconds_by_step(row))
    out.print(
        f"[dim]{time.monotonic() - started:.0f} s in all; everything that the demo started has ended[/]"
    )
    for row in rows:
        if row.followed.status is not JobStatus.SUCCEEDED or row.accuracy < GOOD_ACCURACY:
            fail(f"{row.method}: {row.followed.status} {row.followed.error}, accuracy {row.accuracy:.1%}")


def _run_demo() -> list[Row]:
    # Imported here: the other commands work without the sandbox's packages.
    from worker.sandbox import Sandbox, SandboxError

    try:
        with starting() as start, Sandbox(plugins_dir=EXAMPLE_PLUGINS, on_progress=say) as sandbox:
            sandbox.start_worker()
            start.stop()
            release = sandbox.state.value("SELECT id FROM plugin_releases WHERE code = 'digits'")
            return [
                _run(sandbox, "inference", {"pre_processor": release, "model": 1}),
                _run(sandbox, "file", {"target_specification_name": "label_1"}),
            ]
    except SandboxError as error:
        fail(str(error))


def _run(sandbox: "Sandbox", method: str, params: dict[str, Any]) -> Row:
    from worker.sandbox.sandbox import AGENT_ID
    from worker.sandbox.seed import seed_digits, true_labels

    project = seed_digits(sandbox.state, sandbox.files_dir, sandbox.files_url)
    job = str(sandbox.state.add_job())
    say(f"project {project.id}: {len(project.tasks)} images, served over HTTP")
    params |= {"name": f"demo by {method}", "project": project.id, "agent": AGENT_ID, "method": method}
    message = ToTaskMessage.model_validate({"job": job, "plugin": PLUGIN, "params": params})
    redis = Redis.from_url(sandbox.redis_url, decode_responses=True)
    with Publisher(sandbox.redis_url) as publisher:
        publisher.publish(message)
    followed = watch(redis, job, out, title=f"to_task by {method}, job {job}")
    redis.close()
    result = _reported_result(sandbox, int(job))
    annotated = sandbox.state.rows("SELECT id, data FROM tasks WHERE project = ?", project.id)
    truth = true_labels(project)
    right = sum(1 for task in annotated if _digit(task["data"]) == truth[task["id"]])
    return Row(method, followed, result, right / len(truth))


def _reported_result(sandbox: "Sandbox", job: int) -> dict[str, Any]:
    """What the backend was told of the run's end, which is a moment after the run's end."""
    from worker.sandbox import wait_for

    def is_final() -> bool:
        found = sandbox.state.job(job)
        return found is not None and JobStatus(found["status"]).is_final

    wait_for(is_final, seconds=30, what="the report of the run's end")
    found = sandbox.state.job(job)
    assert found is not None
    return found["result"] or {}


def _digit(data: dict[str, Any] | None) -> int | None:
    return None if data is None else data["classification"]["digit"]


def _table(rows: list[Row]) -> Table:
    """Narrow enough for a terminal of 80 columns."""
    table = Table(title="Pre-annotation of handwritten digits", title_justify="left")
    for name in ("method", "status", "tasks", "failures", "accuracy", "seconds"):
        table.add_column(name, justify="left" if name in {"method", "status"} else "right")
    for row in rows:
        table.add_row(
            row.method,
            row.followed.status,
            str(row.result.get("total_tasks", 0)),
            str(row.result.get("failed_count", 0)),
            f"{row.accuracy:.1%}",
            f"{row.followed.seconds:.1f}",
        )
    return table


def _seconds_by_step(row: Row) -> Table:
    """A line a step, under the method's name."""
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "left", "right"):
        table.add_column(justify=justify)
    for number, (step, seconds) in enumerate(row.followed.seconds_by_step.items()):
        table.add_row(f"by {row.method}" if not number else "", step, f"{seconds:.1f} s")
    return table
