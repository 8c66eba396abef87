"""A run by file whose conversions run in Ray, against the same run with WORKER_PLUGIN_HOST=process.

Two workers, one after the other, in rounds that alternate; the first run of each warms its processes up.
"""

import argparse
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from annotate import IN_FLIGHT, Annotation, Figures
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
    """Alternate the hosts, so that other load of the machine falls on both alike."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer tasks, one round: about a minute")
    parser.add_argument("--tasks", type=int, help="so many tasks in place of the usual number")
    arguments = parser.parse_args()
    tasks = arguments.tasks or (QUICK if arguments.quick else FULL)
    with local_ray() as ray, start_bench() as bench:
        found: dict[tuple[str, int], list[Figures]] = {}
        for _ in range(QUICK_ROUNDS if arguments.quick else ROUNDS):
            for host in HOSTS:
                for latency_ms, figures in measure(bench, host, ray, tasks):
                    found.setdefault((host, latency_ms), []).append(figures)
    for latency_ms in LATENCIES_MS:
        process, in_ray = (found[host, latency_ms] for host in HOSTS)
        print(
            f"by file, {latency_ms} ms: process host {median(process):.0f} tasks/s from the first write,"
            f" Ray host {median(in_ray):.0f}: {median(in_ray) / median(process):.2f} of it;"
            f" CPU a task of the worker {cpu(process):.2f} and {cpu(in_ray):.2f} ms"
        )


def measure(bench: Bench, host: str, ray: dict[str, str], tasks: int) -> Iterator[tuple[int, Figures]]:
    """A worker with this host, and a run for each latency."""
    settings = {"WORKER_ANNOTATE_CONCURRENCY": str(IN_FLIGHT), "WORKER_PLUGIN_HOST": host, **ray}
    with bench.worker("worker", **settings) as worker:
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
