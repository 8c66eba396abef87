"""The command `demo`: the whole product on this machine, with real input."""

import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
METHODS = 2
SAMPLES = 96
"""Images of each run that the live page shows."""


@dataclass(frozen=True)
class DemoRun:
    """One run of the demo, as the final table shows it."""

    job: str
    method: str
    watched: WatchedRun
    result: dict[str, Any]
    accuracy: float


def demo(
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Leave the live page open afterwards, with the images, until Ctrl-C."),
    ] = False,
) -> None:
    """Deploy a digits classifier on Ray Serve and pre-annotate 899 images with it, then from files."""
    started = time.monotonic()
    runs: list[DemoRun] = []
    try:
        with interrupt_once():
            _run_demo(runs, started, keep=keep)
    except KeyboardInterrupt:
        if not (keep and len(runs) == METHODS):
            out.print("interrupted; everything that the demo started has ended")
            raise typer.Exit(INTERRUPTED_EXIT_CODE) from None
    if not keep:
        _print_results(runs, started)
    out.print("[dim]everything that the demo started has ended[/]")
    for run in runs:
        if run.watched.status is not JobStatus.SUCCEEDED or run.accuracy < MIN_ACCURACY:
            fail(f"{run.method}: {run.watched.status} {run.watched.error}, accuracy {run.accuracy:.1%}")


def _print_results(runs: list[DemoRun], started: float) -> None:
    out.print(_results_table(runs))
    for run in runs:
        out.print(_seconds_by_step(run))
    out.print(f"[dim]{time.monotonic() - started:.0f} s in all[/]")


def _run_demo(runs: list[DemoRun], started: float, *, keep: bool) -> None:
    """Fill `runs`; with `keep` show their results, and wait for Ctrl-C."""
    # Imported here: the other commands work without the sandbox's packages.
    from worker.sandbox import Sandbox, SandboxError

    try:
        with (
            startup_ticker() as ticker,
            Sandbox(plugins_dir=EXAMPLE_PLUGINS_DIR, on_progress=print_progress) as sandbox,
        ):
            sandbox.start_worker()
            samples = sandbox.files_dir / "digits"
            url = sandbox.start_console(samples=samples)
            ticker.stop()
            print_progress(f"the live page is on {url}")
            release = sandbox.state.value("SELECT id FROM plugin_releases WHERE code = 'digits'")
            runs.append(
                annotate_digits(sandbox, "inference", {"pre_processor": release, "model": 1}, samples)
            )
            runs.append(annotate_digits(sandbox, "file", {"target_specification_name": "label_1"}, samples))
            if keep:
                _print_results(runs, started)
                print_progress(f"the live page stays on {url}, until Ctrl-C ends all")
                print_progress(f"the images with their labels: {url}/#/labels")
                signal.pause()
    except SandboxError as error:
        fail(str(error))


def annotate_digits(sandbox: "Sandbox", method: str, params: dict[str, object], samples: Path) -> DemoRun:
    """Annotate the images of a new project, and leave the first ones in `samples` with their labels."""
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
    labels = {task["id"]: _annotated_digit(task["data"]) for task in annotated}
    _write_samples(samples, job, method, project.tasks, labels, truth)
    accuracy = sum(labels.get(task) == truth[task] for task in truth) / len(truth)
    return DemoRun(job, method, watched, result, accuracy)


def _write_samples(
    folder: Path, job: str, method: str, tasks: range, labels: dict[int, int | None], truth: dict[int, int]
) -> None:
    """For the live page: the images of the first tasks, each with its label."""
    images = sorted(folder.glob("*.png"), key=lambda path: int(path.stem))
    shown = [
        {"image": image.name, "label": labels.get(task), "truth": truth[task]}
        for task, image in list(zip(tasks, images, strict=True))[:SAMPLES]
    ]
    file = folder / "samples.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    file.write_text(json.dumps([*known, {"job": job, "method": method, "samples": shown}]), encoding="utf-8")


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
