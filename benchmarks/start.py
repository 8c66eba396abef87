"""A worker's start, and what it takes while it does nothing, against a bare Celery worker of the same queues.

The worker has the settings of production, Ray included, but nothing for which Ray would be needed. The bare
one starts without mingle and gossip, as the worker does: mingle alone waits for a second.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from common.results import Row, argument_parser, at_most, report
from engine import Bench, cpu_seconds, start_bench

from worker.sandbox.processes import Process
from worker.sandbox.sandbox import ALL_QUEUES

BARE_APP = """
import os
from celery import Celery
app = Celery("bare", broker=os.environ["BENCH_REDIS"])
app.conf.update(task_ignore_result=True, task_acks_late=True, worker_prefetch_multiplier=1)
"""
"""The smallest app, because what `engine.py` imports would count as Celery's."""
BARE_OPTIONS = ("-Q", ALL_QUEUES, "--without-mingle", "--without-gossip")
SETTLE_SECONDS = 5.0
MAX_CORE_PERCENT = 0.3
MB = 1024**2


@dataclass(frozen=True)
class Size:
    """How often each worker is started, and for how long both are watched."""

    starts: int
    idle_seconds: float


FULL, QUICK = Size(starts=5, idle_seconds=60.0), Size(starts=1, idle_seconds=10.0)


@dataclass(frozen=True)
class Idle:
    """What a worker takes while it does nothing."""

    core_percent: float
    megabytes: float


class Workers:
    """Workers of both kinds on one Redis."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self._bench = bench
        (folder / "bare_app.py").write_text(BARE_APP)
        self._bare = {"PYTHONPATH": str(folder)}
        self._number = 0

    @contextmanager
    def run(self, *, is_bare: bool) -> Iterator[tuple[float, Process]]:
        """Seconds until the worker was ready, and its process, which runs until the block ends."""
        self._number += 1  # never 0, with which the bench empties Redis
        if is_bare:
            worker = self._bench.worker("bare_app", *BARE_OPTIONS, number=self._number, settings=self._bare)
        else:
            worker = self._bench.worker("worker", number=self._number, settings={"WORKER_PLUGIN_HOST": "ray"})
        with worker as process:
            yield self._bench.start_seconds, process

    def start(self, *, is_bare: bool) -> float:
        """Seconds until a worker is ready, which is ended then."""
        with self.run(is_bare=is_bare) as (seconds, _):
            return seconds


def idle(processes: tuple[Process, ...], seconds: float) -> list[Idle]:
    """Watch them side by side: what one does takes nothing from the other."""
    time.sleep(SETTLE_SECONDS)
    before, began = [cpu_seconds(process) for process in processes], time.monotonic()
    time.sleep(seconds)
    lasted = time.monotonic() - began
    return [
        Idle(
            (cpu_seconds(process) - spent) / lasted * 100,
            sum(psutil.Process(pid).memory_info().rss for pid in process.pids()) / MB,
        )
        for process, spent in zip(processes, before, strict=True)
    ]


def measure(size: Size) -> Iterator[Row]:
    """Start both in turns, so that other load falls on both alike; then let one of each idle."""
    with start_bench() as bench, TemporaryDirectory() as folder:
        workers = Workers(bench, Path(folder))
        workers.start(is_bare=True), workers.start(is_bare=False)  # their files are read and compiled
        bare, ours = [], []
        for _ in range(size.starts):
            bare.append(workers.start(is_bare=True))
            ours.append(workers.start(is_bare=False))
        with workers.run(is_bare=True) as (_, bare_process), workers.run(is_bare=False) as (_, process):
            bare_idle, ours_idle = idle((bare_process, process), size.idle_seconds)
    note = f"median of {size.starts}: {', '.join(f'{seconds:.1f}' for seconds in ours)}"
    start, against = "worker: start to ready", "bare Celery worker"
    yield Row(start, statistics.median(ours), "s", against, statistics.median(bare), at_most(2), note)
    share = at_most(MAX_CORE_PERCENT, of_figure=True)
    note = f"in {size.idle_seconds:.0f} s"
    cpu = "idle worker: CPU"
    yield Row(cpu, ours_idle.core_percent, "% of a core", against, bare_idle.core_percent, share, note)
    memory = "idle worker: memory before Ray is needed"
    yield Row(memory, ours_idle.megabytes, "MB", against, bare_idle.megabytes, at_most(2))


def main() -> None:
    """Measure and report."""
    arguments = argument_parser(__doc__, quick="fewer starts, a shorter watch: half a minute").parse_args()
    report(measure(QUICK if arguments.quick else FULL), arguments, __file__)


if __name__ == "__main__":
    main()
