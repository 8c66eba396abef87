"""One large run by file: its rate and memory against those of a small one, and small ones beside it.

The memory is looked at over the run, after its first tenth, in which buffers and pools grow to their size.
"""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

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
LARGE_JOB, SMALL_JOBS = 500_000, (600_000, 700_000)


@dataclass(frozen=True)
class Size:
    """Tasks of the run whose rate and memory are measured (None: not at all), and the runs side by side."""

    large: int | None
    beside: int
    small: int
    small_tasks: int


FULL = Size(large=100_000, beside=20_000, small=20, small_tasks=100)
QUICK = Size(large=None, beside=20_000, small=20, small_tasks=100)


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

    def _writes(self) -> dict[str, object]:
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
    return statistics.median(getattr(each, name) for each in found)


def seconds_of_small(bench: Bench, first_job: int, size: Size) -> list[float]:
    """Publish the small runs at once; seconds from there to the end of each, in order of their ends."""
    jobs = range(first_job, first_job + size.small)
    with Publisher(bench.redis_url) as publisher:
        began = time.monotonic()
        for job in jobs:
            publisher.publish(message_of(job, size.small_tasks))
    ends: dict[int, float] = {}

    def have_ended() -> bool:
        with bench.redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.hget(job_key(str(job)), "status")
            for job, status in zip(jobs, pipe.execute(), strict=True):
                if status in ENDED:
                    assert status == "SUCCEEDED", (job, status)
                    ends.setdefault(job, time.monotonic() - began)
        return len(ends) == size.small

    wait_for(have_ended, MAX_WAIT_SECONDS, "the small runs")
    return sorted(ends.values())


def measure_beside(bench: Bench, size: Size) -> Iterator[Row]:
    """The small runs alone, and beside a large one that is in full swing and should be when they end."""
    bench.set_latency(LATENCY_MS)
    alone = seconds_of_small(bench, SMALL_JOBS[0], size)
    bench.set_latency(LATENCY_MS)
    with Publisher(bench.redis_url) as publisher:
        publisher.publish(message_of(LARGE_JOB, size.beside))
        wait_for(lambda: bench.writes()["tasks"] > UNDER_WAY, MAX_WAIT_SECONDS, "a large run")
        beside = seconds_of_small(bench, SMALL_JOBS[1], size)
        status = bench.redis.hget(job_key(str(LARGE_JOB)), "status")
        publisher.publish(StopMessage(job=str(LARGE_JOB)))
    ratios = [mine / others for mine, others in zip(beside, alone, strict=True)]
    worst = max(range(size.small), key=ratios.__getitem__)
    note = f"the worst of {size.small} by rank; the last {beside[-1]:.2f} s, alone {alone[-1]:.2f} s"
    if status != "RUNNING":
        note += f"; the large one was {status} before they ended"
    what = f"{size.small} runs of {size.small_tasks} tasks beside one of {size.beside:,}"
    yield Row(f"{what}: publishing to end", beside[worst], "s", "alone", alone[worst], at_most(3), note)
    middle = size.small // 2
    yield Row(f"{what}: median", beside[middle], "s", "alone", alone[middle])


def measure(size: Size) -> Iterator[Row]:
    """Both, with one worker."""
    settings = {"WORKER_ANNOTATE_CONCURRENCY": str(IN_FLIGHT)}
    with start_bench() as bench, bench.worker("worker", **settings) as worker:
        if size.large is not None:
            yield from measure_large(bench, worker, size.large)
        else:
            Annotation(bench, worker).measure_worker("file", LATENCY_MS, TASKS)
        yield from measure_beside(bench, size)


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
