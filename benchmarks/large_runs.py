"""One large run by file: its rate and memory against those of a small one, and small ones beside it.

The memory is looked at over the run, after its first tenth, in which buffers and pools grow to their size.
"""

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil
from annotate import IN_FLIGHT, TASKS, Annotation, message_of
from common.results import Row, argument_parser, at_least, at_most, report
from engine import MAX_WAIT_SECONDS, Bench, start_bench

from shared import Publisher, StopMessage
from shared.channels import job_key
from worker.sandbox import wait_for
from worker.sandbox.processes import Process

LATENCY_MS = 20
UNDER_WAY = 1_000
"""Written tasks of the large run, when the small ones are published."""
MB = 1024**2
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
LARGE_TENANT = "large"
TENANT_CHUNKS = 1
"""A process begins about one for each 32 of its requests in flight, so this leaves one to others."""


@dataclass(frozen=True)
class Beside:
    """Small runs, and the large ones of another tenant beside which they are measured."""

    small: int
    large: int
    tasks: int
    """Of a large run."""
    small_tasks: int = 100
    tenant_chunks: int | None = None
    """WORKER_TENANT_CHUNKS."""

    def __str__(self) -> str:
        large = f"one of {self.tasks:,}" if self.large == 1 else f"{self.large} of {self.tasks:,}"
        share = f", {self.tenant_chunks} chunks a tenant" if self.tenant_chunks else ""
        return f"{self.small} runs of {self.small_tasks} tasks beside {large}{share}"


@dataclass(frozen=True)
class Size:
    """Tasks of the run whose rate and memory are measured (None: not at all), and the runs side by side."""

    large: int | None
    beside: tuple[Beside, ...]


USUAL = Beside(small=20, large=1, tasks=20_000)
FULL = Size(
    large=100_000,
    beside=(
        USUAL,
        Beside(small=10, large=1, tasks=100_000),
        Beside(small=10, large=10, tasks=20_000),
        Beside(small=10, large=10, tasks=20_000, tenant_chunks=TENANT_CHUNKS),
    ),
)
QUICK = Size(large=None, beside=(USUAL,))


@dataclass(frozen=True)
class Memory:
    """What a worker's process and Redis hold once some tasks are written, in MB."""

    written: int
    worker: float
    redis: float


class WatchedAnnotation(Annotation):
    """Remembers the memory while it waits for a run."""

    def __init__(self, bench: Bench, worker: Process) -> None:
        super().__init__(bench, worker)
        self._redis, self._process = bench.redis, psutil.Process(worker.pid)
        self.memory: list[Memory] = []

    def _writes(self) -> Any:
        found = super()._writes()
        redis = self._redis.info("memory")["used_memory"] / MB
        self.memory.append(Memory(int(found["tasks"]), self._process.memory_info().rss / MB, redis))
        return found


def measure_large(bench: Bench, worker: Process, tasks: int) -> Iterator[Row]:
    """The rate and the memory of one large run, against a run of the usual size."""
    annotation = WatchedAnnotation(bench, worker)
    small = annotation.measure_worker("file", LATENCY_MS, TASKS)
    annotation.memory.clear()
    large = annotation.measure_worker("file", LATENCY_MS, tasks)
    what, against = f"{tasks:,} tasks by file, {LATENCY_MS} ms", f"{TASKS:,} tasks"
    rate = f"{what}: from the first write"
    yield Row(rate, large.from_first_write, "tasks/s", against, small.from_first_write, at_least(0.95))
    yield Row(f"{what}: CPU a task", large.cpu_ms, "ms", against, small.cpu_ms)
    begun = [each for each in annotation.memory if tasks * 0.1 < each.written <= tasks * 0.2]
    ending = [each for each in annotation.memory if tasks * 0.9 < each.written <= tasks]
    for name, first, last in (
        ("memory of the worker", _median(begun, "worker"), _median(ending, "worker")),
        ("memory of Redis", _median(begun, "redis"), _median(ending, "redis")),
    ):
        yield Row(f"{what}: {name}, last tenth", last, "MB", "second tenth", first, at_most(1.1))


def _median(found: Sequence[Memory], name: str) -> float:
    return float(statistics.median(getattr(each, name) for each in found))


def seconds_of_small(bench: Bench, jobs: range, tasks: int) -> list[float]:
    """Publish the small runs at once; seconds from there to the end of each, in order of their ends."""
    with Publisher(bench.redis_url) as publisher:
        began = time.monotonic()
        for job in jobs:
            publisher.publish(message_of(job, tasks))
    ends: dict[int, float] = {}

    def have_ended() -> bool:
        with bench.redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hget(job_key(str(job)), "status")
            for job, status in zip(jobs, pipe.execute(), strict=True):
                if status in ENDED:
                    assert status == "SUCCEEDED", (job, status)
                    ends.setdefault(job, time.monotonic() - began)
        return len(ends) == len(jobs)

    wait_for(have_ended, MAX_WAIT_SECONDS, "the small runs")
    return sorted(ends.values())


def measure_beside(bench: Bench, case: Beside, jobs: Iterator[int]) -> Iterator[Row]:
    """The small runs alone, and beside large ones that are in full swing and should be when they end."""
    first = next(jobs)
    small, others = range(first, first + case.small), range(first + 1_000, first + 1_000 + case.small)
    large = [first + 2_000 + number for number in range(case.large)]
    bench.set_latency(LATENCY_MS)
    alone = seconds_of_small(bench, small, case.small_tasks)
    bench.set_latency(LATENCY_MS)
    with Publisher(bench.redis_url) as publisher:
        for job in large:
            publisher.publish(message_of(job, case.tasks, tenant=LARGE_TENANT))
        # Tasks are listed before the first is annotated, which no share of chunks limits.
        wait_for(lambda: _are_at(bench, large, "to_task.spread"), MAX_WAIT_SECONDS, "the tasks listed")
        wait_for(lambda: bench.writes()["tasks"] > UNDER_WAY, MAX_WAIT_SECONDS, "large runs")
        beside = seconds_of_small(bench, others, case.small_tasks)
        statuses = [bench.redis.hget(job_key(str(job)), "status") for job in large]
        for job in large:
            publisher.publish(StopMessage(job=str(job)))
    wait_for(lambda: _have_ended(bench, large), MAX_WAIT_SECONDS, "the end of the large runs")
    ratios = [mine / theirs for mine, theirs in zip(beside, alone, strict=True)]
    worst = max(range(case.small), key=ratios.__getitem__)
    note = f"the worst of {case.small} by rank; the last {beside[-1]:.2f} s, alone {alone[-1]:.2f} s"
    if ended := [status for status in statuses if status != "RUNNING"]:
        note += f"; {len(ended)} large ones were {ended[0]} before they ended"
    goal = None if case.large > 1 and case.tenant_chunks is None else at_most(3)
    yield Row(f"{case}: publishing to end", beside[worst], "s", "alone", alone[worst], goal, note)
    middle = case.small // 2
    yield Row(f"{case}: median", beside[middle], "s", "alone", alone[middle])


def _are_at(bench: Bench, jobs: Sequence[int], step: str) -> bool:
    return all(bench.redis.hget(job_key(str(job)), "step") == step for job in jobs)


def _have_ended(bench: Bench, jobs: Sequence[int]) -> bool:
    return all(bench.redis.hget(job_key(str(job)), "status") in ENDED for job in jobs)


def measure(size: Size) -> Iterator[Row]:
    """Both, with one worker, or with another where tenants have shares."""
    settings = {"WORKER_ANNOTATE_CONCURRENCY": str(IN_FLIGHT)}
    jobs = itertools.count(500_000, 10_000)
    with start_bench() as bench:
        with bench.worker("worker", settings=settings) as worker:
            if size.large is not None:
                yield from measure_large(bench, worker, size.large)
            else:
                Annotation(bench, worker).measure_worker("file", LATENCY_MS, TASKS)
            for case in size.beside:
                if case.tenant_chunks is None:
                    yield from measure_beside(bench, case, jobs)
        for case in size.beside:
            if case.tenant_chunks is not None:
                limit = {"WORKER_TENANT_CHUNKS": str(case.tenant_chunks)}
                with bench.worker("worker", settings=settings | limit):
                    first = next(jobs)
                    seconds_of_small(bench, range(first, first + case.small), case.small_tasks)
                    yield from measure_beside(bench, case, jobs)


def main() -> None:
    """Measure and report."""
    parser = argument_parser(__doc__, quick="small runs beside a large one alone: twenty seconds")
    parser.add_argument("--large", type=int, help="so many tasks of the large run, in place of 100,000")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    if arguments.large:
        size = replace(size, large=arguments.large)
    report(measure(size), arguments, __file__)


if __name__ == "__main__":
    main()
