"""More worker processes for one run by file: the rate and the CPU a task, against one.

With 200 ms of latency one process is bound by the 64 requests that it may have in flight, and not by its CPU.
With 20 ms the machine's cores bound all processes, backend and Redis included, so that has no goal.
"""

from collections.abc import Iterator
from contextlib import ExitStack

from annotate import IN_FLIGHT, TASKS, Annotation, Figures
from common.results import Goal, Row, argument_parser, at_least, at_most, report
from engine import start_bench

from worker.sandbox.processes import Process

GOALS: dict[int, dict[int, Goal | None]] = {200: {2: at_least(1.9), 4: at_least(3.5)}, 20: {2: None, 4: None}}
"""By latency in ms: for the rate of so many processes against one."""
MAX_CPU_RATIO = 1.15
WORKER_COUNTS = (1, 2, 4)
JOBS_A_COUNT = 100


def measure(tasks: int, latencies_ms: tuple[int, ...]) -> Iterator[Row]:
    """Start more and more workers; measure each number of them at each latency."""
    settings = {"WORKER_ANNOTATE_CONCURRENCY": str(IN_FLIGHT)}
    found: dict[tuple[int, int], Figures] = {}
    with start_bench() as bench, ExitStack() as running:
        workers: list[Process] = []
        for count in WORKER_COUNTS:
            while len(workers) < count:
                worker = bench.worker("worker", number=len(workers), settings=settings)
                workers.append(running.enter_context(worker))
            annotation = Annotation(bench, *workers, first_job=1 + count * JOBS_A_COUNT)
            for latency_ms in latencies_ms:
                found[latency_ms, count] = annotation.measure_worker("file", latency_ms, tasks)
    for latency_ms in latencies_ms:
        one = found[latency_ms, 1]
        for count, goal in GOALS[latency_ms].items():
            many, what = found[latency_ms, count], f"by file, {latency_ms} ms, {count} worker processes"
            first, cpu = f"{what}: from the first write", None if goal is None else at_most(MAX_CPU_RATIO)
            yield Row(first, many.from_first_write, "tasks/s", "one process", one.from_first_write, goal)
            yield Row(f"{what}: CPU a task", many.cpu_ms, "ms", "one process", one.cpu_ms, cpu)


def main() -> None:
    """Measure and report."""
    arguments = argument_parser(__doc__, quick="at 200 ms alone, fewer tasks: half a minute").parse_args()
    # Four processes need some chunks each, or the last ones run alone.
    rows = measure(TASKS, (200,)) if arguments.quick else measure(2 * TASKS, (200, 20))
    report(rows, arguments, __file__)


if __name__ == "__main__":
    main()
