"""The command `demo`: see the whole product work, on real input, on this machine."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from redis import Redis
from rich.table import Table

from shared import JobStatus, Publisher, ToTaskMessage
from worker.cli.console import fail, out
from worker.cli.progress_view import Followed, watch
from worker.cli.sandbox import EXAMPLE_PLUGINS, say

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
    """Deploy a digits classifier on Ray Serve and pre-annotate some 900 images with it, then from files."""
    started = time.monotonic()
    try:
        with _interruptible():
            rows = _run_demo()
    except KeyboardInterrupt:
        out.print("interrupted; everything that the demo started has ended")
        raise typer.Exit(130) from None
    out.print(_table(rows))
    out.print(
        f"[dim]{time.monotonic() - started:.0f} s in all; everything that the demo started has ended[/]"
    )
    for row in rows:
        if row.followed.status is not JobStatus.SUCCEEDED or row.accuracy < GOOD_ACCURACY:
            fail(f"{row.method}: {row.followed.status} {row.followed.error}, accuracy {row.accuracy:.1%}")


def _run_demo() -> list[Row]:
    from worker.sandbox import Sandbox, SandboxError, digits

    try:
        with Sandbox(None, plugins_dir=EXAMPLE_PLUGINS, num_cpus=4, on_progress=say) as sandbox:
            project = digits.seed(sandbox)
            say(f"project {project}: {digits.count(sandbox.state, project)} images, served over HTTP")
            sandbox.start_worker()
            inference = {"method": "inference", "pre_processor": sandbox.state.release_id(PLUGIN), "model": 1}
            by_file = {"method": "file", "target_specification_name": digits.LABEL_SPECIFICATION}
            return [
                _run(sandbox, project, "inference", inference),
                _run(sandbox, project, "file", by_file),
            ]
    except SandboxError as error:
        fail(str(error))


def _run(sandbox: "Sandbox", project: int, method: str, params: dict[str, Any]) -> Row:
    from worker.sandbox import digits

    job = str(sandbox.state.create_job(action="to_task"))
    message = ToTaskMessage.model_validate(
        {
            "job": job,
            "plugin": PLUGIN,
            "params": {"name": f"demo by {method}", "project": project, "agent": sandbox.agent_id, **params},
        }
    )
    redis = Redis.from_url(sandbox.redis_url, decode_responses=True)
    # Follow first: the first events come within milliseconds.
    with Publisher(sandbox.redis_url) as publisher:
        publisher.publish(message)
        followed = watch(redis, job, out, title=f"to_task by {method} (job {job})")
    redis.close()
    result = sandbox.state.wait_for_final(job, timeout=30)["result"] or {}
    return Row(method, followed, result, digits.accuracy(sandbox.state, project, job))


def _table(rows: list[Row]) -> Table:
    table = Table(title="Pre-annotation of handwritten digits", title_justify="left")
    for name in ("method", "status", "tasks", "failures", "accuracy", "seconds", "seconds by step"):
        table.add_column(
            name, justify="right" if name in {"tasks", "failures", "accuracy", "seconds"} else "left"
        )
    for row in rows:
        steps = ", ".join(f"{step} {seconds:.1f}" for step, seconds in row.followed.seconds_by_step.items())
        table.add_row(
            row.method,
            row.followed.status,
            str(row.result.get("total_tasks", 0)),
            str(row.result.get("failed_count", 0)),
            f"{row.accuracy:.1%}",
            f"{row.followed.seconds:.1f}",
            steps,
        )
    return table


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: with everything stopped."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
