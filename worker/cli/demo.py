"""The command `demo`: the whole product on this machine, with real input."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from redis import Redis
from rich.table import Table

from shared import JobStatus, Publisher, ToTaskMessage
from worker.cli.console import INTERRUPTED_EXIT_CODE, fail, out
from worker.cli.interrupts import interrupt_once
from worker.cli.progress import WatchedRun, watch_run
from worker.cli.sandbox import EXAMPLE_PLUGINS_DIR, print_progress, startup_ticker

if TYPE_CHECKING:
    from worker.sandbox import Sandbox

PLUGIN = "digits@1.0.0"
MIN_ACCURACY = 0.9


@dataclass(frozen=True)
class DemoRun:
    """One run of the demo, as the final table shows it."""

    method: str
    watched: WatchedRun
    result: dict[str, Any]
    accuracy: float


def demo() -> None:
    """Deploy a digits classifier on Ray Serve and pre-annotate 899 images with it, then from files."""
    started = time.monotonic()
    try:
        with interrupt_once():
            runs = _run_demo()
    except KeyboardInterrupt:
        out.print("interrupted; everything that the demo started has ended")
        raise typer.Exit(INTERRUPTED_EXIT_CODE) from None
    out.print(_results_table(runs))
    for run in runs:
        out.print(_seconds_by_step(run))
    out.print(
        f"[dim]{time.monotonic() - started:.0f} s in all; everything that the demo started has ended[/]"
    )
    for run in runs:
        if run.watched.status is not JobStatus.SUCCEEDED or run.accuracy < MIN_ACCURACY:
            fail(f"{run.method}: {run.watched.status} {run.watched.error}, accuracy {run.accuracy:.1%}")


def _run_demo() -> list[DemoRun]:
    # Imported here: the other commands work without the sandbox's packages.
    from worker.sandbox import Sandbox, SandboxError

    try:
        with (
            startup_ticker() as ticker,
            Sandbox(plugins_dir=EXAMPLE_PLUGINS_DIR, on_progress=print_progress) as sandbox,
        ):
            sandbox.start_worker()
            ticker.stop()
            release = sandbox.state.value("SELECT id FROM plugin_releases WHERE code = 'digits'")
            return [
                _annotate(sandbox, "inference", {"pre_processor": release, "model": 1}),
                _annotate(sandbox, "file", {"target_specification_name": "label_1"}),
            ]
    except SandboxError as error:
        fail(str(error))


def _annotate(sandbox: "Sandbox", method: str, params: dict[str, object]) -> DemoRun:
    from worker.sandbox.sandbox import AGENT_ID
    from worker.sandbox.seed import seed_digits, true_labels

    project = seed_digits(sandbox.state, sandbox.files_dir, sandbox.files_url)
    job = str(sandbox.state.add_job())
    print_progress(f"project {project.id}: {len(project.tasks)} images, served over HTTP")
    params |= {"name": f"demo by {method}", "project": project.id, "agent": AGENT_ID, "method": method}
    message = ToTaskMessage.model_validate({"job": job, "plugin": PLUGIN, "params": params})
    redis = Redis.from_url(sandbox.redis_url, decode_responses=True)
    with Publisher(sandbox.redis_url) as publisher:
        publisher.publish(message)
    watched = watch_run(redis, job, out, title=f"to_task by {method}, job {job}")
    redis.close()
    result = _reported_result(sandbox, int(job))
    annotated = sandbox.state.rows("SELECT id, data FROM tasks WHERE project = ?", project.id)
    truth = true_labels(project)
    correct = sum(1 for task in annotated if _annotated_digit(task["data"]) == truth[task["id"]])
    return DemoRun(method, watched, result, correct / len(truth))


def _reported_result(sandbox: "Sandbox", job: int) -> dict[str, Any]:
    """The result in the backend, which the worker reports shortly after the run's end."""
    from worker.sandbox import wait_for

    def is_final() -> bool:
        found = sandbox.state.job(job)
        return found is not None and JobStatus(found["status"]).is_final

    wait_for(is_final, seconds=30, what="the report of the run's end")
    found = sandbox.state.job(job)
    assert found is not None
    return found["result"] or {}


def _annotated_digit(data: dict[str, Any] | None) -> int | None:
    return None if data is None else data["classification"]["digit"]


def _results_table(runs: list[DemoRun]) -> Table:
    """The results of the runs; narrow enough for a terminal of 80 columns."""
    table = Table(title="Pre-annotation of handwritten digits", title_justify="left")
    for name in ("method", "status", "tasks", "failures", "accuracy", "seconds"):
        table.add_column(name, justify="left" if name in {"method", "status"} else "right")
    for run in runs:
        table.add_row(
            run.method,
            run.watched.status,
            str(run.result.get("total_tasks", 0)),
            str(run.result.get("failed_count", 0)),
            f"{run.accuracy:.1%}",
            f"{run.watched.seconds:.1f}",
        )
    return table


def _seconds_by_step(run: DemoRun) -> Table:
    """The seconds of each step of a run, one line for each."""
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "left", "right"):
        table.add_column(justify=justify)
    for number, (step, seconds) in enumerate(run.watched.seconds_by_step.items()):
        table.add_row(f"by {run.method}" if not number else "", step, f"{seconds:.1f} s")
    return table
