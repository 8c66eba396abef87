"""A run by file whose conversions run in Ray, against the same run with WORKER_PLUGIN_HOST=process.

Two workers, one after the other, in rounds that alternate; the first run of each warms its processes up.
"""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from annotate import IN_FLIGHT, Annotation, Figures
from common.results import Row, argument_parser, at_least, report
from engine import Bench, start_bench

from worker.sandbox.local_ray import LocalRay

FULL, QUICK = 2_000, 600
"""Tasks of a measurement."""
ROUNDS, QUICK_ROUNDS = 3, 1
LATENCIES_MS = (20, 0)
HOSTS = ("process", "ray")


@contextmanager
def local_ray() -> Iterator[dict[str, str]]:
    """A Ray while the block runs; yields the settings that a worker needs for it."""
    with TemporaryDirectory() as folder:
        ray = LocalRay(Path(folder) / "ray", num_cpus=4)
        ray.launch()
        try:
            ray.await_ready()
            yield ray.environment()
        finally:
            ray.stop()


def main() -> None:
    """Measure and report."""
    parser = argument_parser(__doc__, quick="fewer tasks, one round: about a minute")
    parser.add_argument("--tasks", type=int, help="so many tasks in place of the usual number")
    arguments = parser.parse_args()
    tasks = arguments.tasks or (QUICK if arguments.quick else FULL)
    report(compare(tasks, QUICK_ROUNDS if arguments.quick else ROUNDS), arguments, __file__)


def compare(tasks: int, rounds: int) -> Iterator[Row]:
    """Alternate the hosts, so that other load of the machine falls on both alike."""
    with local_ray() as ray, start_bench() as bench:
        found: dict[tuple[str, int], list[Figures]] = {}
        for _ in range(rounds):
            for host in HOSTS:
                for latency_ms, figures in measure(bench, host, ray, tasks):
                    found.setdefault((host, latency_ms), []).append(figures)
    for latency_ms in LATENCIES_MS:
        process, in_ray = (found[host, latency_ms] for host in HOSTS)
        what, against = f"Ray host, by file, {latency_ms} ms, from the first write", "process host"
        yield Row(what, median(in_ray), "tasks/s", against, median(process), at_least(0.7))
        # Without those of Ray's processes.
        yield Row(f"{what}: CPU of the worker a task", cpu(in_ray), "ms", against, cpu(process))


def measure(bench: Bench, host: str, ray: dict[str, str], tasks: int) -> Iterator[tuple[int, Figures]]:
    """A worker with this host, and a run for each latency."""
    settings = {"WORKER_ANNOTATE_CONCURRENCY": str(IN_FLIGHT), "WORKER_PLUGIN_HOST": host, **ray}
    with bench.worker("worker", settings=settings) as worker:
        bench.let_pre_processors_run()
        annotation = Annotation(bench, worker)
        for latency_ms in LATENCIES_MS:
            yield latency_ms, annotation.measure_worker("file", latency_ms, tasks)


def median(found: list[Figures]) -> float:
    """Tasks a second from the first write."""
    return statistics.median(figures.from_first_write for figures in found)


def cpu(found: list[Figures]) -> float:
    """Milliseconds of the worker's CPU a task, without those of Ray's processes."""
    return statistics.median(figures.cpu_ms for figures in found)


if __name__ == "__main__":
    main()
