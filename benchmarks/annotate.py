"""What annotating adds to a bare loop of the same requests: by file and by inference, at 0 and at 20 ms.

The bare loop fetches and writes each task (and asks for its inference in between) with aiohttp, with as many
requests in flight as the worker has.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import psutil
from common.results import Row, argument_parser, at_least, at_most, report
from common.stub_backend import PLUGIN, SPECIFICATION
from engine import MAX_WAIT_SECONDS, Bench, start_bench

from shared import Publisher, ToTaskMessage
from worker.sandbox import wait_for
from worker.sandbox.processes import Process

IN_FLIGHT = 64
TASKS = 2_000
WARM_UP = 200
GOALS = {
    ("file", 20): (at_least(0.9), at_least(0.8), None),
    ("file", 0): (at_least(0.4), None, at_most(0.5, of_figure=True)),
    ("inference", 20): (at_least(0.9), None, None),
    ("inference", 0): (None, None, None),
}
"""Of each way: the goals for the rate from the first write, for that from publishing, and for the CPU."""


async def bare_loop(backend: str, method: str, tasks: int) -> None:
    """The same requests, and nothing else."""
    left = deque(range(1, tasks + 1))
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def call(verb: str, path: str, body: Any = None) -> Any:
            async with session.request(verb, f"{backend}/{path}", json=body) as response:
                return await response.json()

        async def work() -> None:
            while left:
                task = left.popleft()
                await call("GET", f"tasks/{task}/?fields=id,data,data_unit&expand=data_unit")
                if method == "inference":
                    params = {"method": "post", "json": {"text": "x"}}
                    body = {"agent": 1, "action": "inference", "params": params, "version": "1.0.0"}
                    await call("POST", "plugins/walk1/run/", body)
                await call("PUT", f"tasks/{task}/annotate_task_data/", {"action": "submit", "data": {}})

        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


@dataclass(frozen=True)
class Figures:
    """Of one run over all tasks: tasks a second, from publishing and from the first write; CPU a task."""

    from_publishing: float
    from_first_write: float
    cpu_ms: float


class Annotation:
    """Runs over all tasks of a project, by the worker and by the bare loop."""

    def __init__(self, bench: Bench, *workers: Process, first_job: int = 1) -> None:
        self._bench = bench
        self._workers = [psutil.Process(worker.pid) for worker in workers]  # without the plugin's processes
        self._jobs = itertools.count(first_job)

    def measure_worker(self, method: str, latency_ms: int, tasks: int) -> Figures:
        """Publish one run and wait until all of its tasks are written."""
        self._run(method, latency_ms, WARM_UP * len(self._workers))
        before = _cpu_seconds(*self._workers)
        published = self._run(method, latency_ms, tasks)
        return self._figures(published, tasks, _cpu_seconds(*self._workers) - before)

    def measure_bare(self, method: str, latency_ms: int, tasks: int) -> Figures:
        """The same requests in a bare loop of this process."""
        own = psutil.Process()
        self._bench.set_latency(latency_ms)
        asyncio.run(bare_loop(self._bench.backend, method, WARM_UP))
        self._bench.set_latency(latency_ms)
        before, began = _cpu_seconds(own), time.time()
        asyncio.run(bare_loop(self._bench.backend, method, tasks))
        return self._figures(began, tasks, _cpu_seconds(own) - before)

    def _run(self, method: str, latency_ms: int, tasks: int) -> float:
        self._bench.set_latency(latency_ms)
        with Publisher(self._bench.redis_url) as publisher:
            published = time.time()
            publisher.publish(message_of(next(self._jobs), tasks, method))
        wait_for(lambda: self._writes()["tasks"] == tasks, MAX_WAIT_SECONDS, "all writes")
        return published

    def _figures(self, began: float, tasks: int, cpu_seconds: float) -> Figures:
        found = self._writes()
        first, last = found["span"]
        if found["writes"] != tasks:
            print(f"({found['writes']} writes for {tasks} tasks)")
        return Figures(tasks / (last - began), tasks / (last - first), cpu_seconds / tasks * 1e3)

    def _writes(self) -> Any:
        return self._bench.writes()


def message_of(job: int, tasks: int, method: str = "file", tenant: str | None = None) -> ToTaskMessage:
    """A run over all tasks of a project that has so many."""
    params: dict[str, Any] = {"name": "bench", "project": tasks + 1, "agent": 1, "method": method}
    if method == "file":
        params |= {"target_specification_name": SPECIFICATION}
    else:
        params |= {"pre_processor": 1, "model": 1, "batch_size": IN_FLIGHT}
    fields = {"job": job, "plugin": PLUGIN, "params": params, "tenant": tenant}
    return ToTaskMessage.model_validate(fields)


def _cpu_seconds(*processes: psutil.Process) -> float:
    return float(sum(sum(process.cpu_times()[:2]) for process in processes))


def rows_of(method: str, latency_ms: int, bare: Figures, ours: Figures) -> Iterator[Row]:
    """A row a goal."""
    what, against = f"by {method}, {latency_ms} ms", "bare aiohttp loop"
    first, published, cpu = GOALS[method, latency_ms]
    yield Row(
        f"{what}: from the first write",
        ours.from_first_write,
        "tasks/s",
        against,
        bare.from_first_write,
        first,
    )
    yield Row(
        f"{what}: from publishing", ours.from_publishing, "tasks/s", against, bare.from_publishing, published
    )
    yield Row(f"{what}: CPU a task", ours.cpu_ms, "ms", against, bare.cpu_ms, cpu)


def measure(tasks: int, ways: Collection[tuple[str, int]]) -> Iterator[Row]:
    """Measure the bare loop and the worker, one after the other, in each way."""
    settings = {"WORKER_ANNOTATE_CONCURRENCY": str(IN_FLIGHT)}
    with start_bench() as bench, bench.worker("worker", settings=settings) as worker:
        bench.let_pre_processors_run()
        annotation = Annotation(bench, worker)
        for method, latency_ms in ways:
            bare = annotation.measure_bare(method, latency_ms, tasks)
            ours = annotation.measure_worker(method, latency_ms, tasks)
            yield from rows_of(method, latency_ms, bare, ours)


def main() -> None:
    """Measure and report."""
    parser = argument_parser(__doc__, quick="what has a goal: half a minute")
    parser.add_argument("--tasks", type=int, default=TASKS, help=f"so many tasks, in place of {TASKS:,}")
    parser.add_argument("--only", help="one way alone, such as file-20")
    arguments = parser.parse_args()
    ways = [way for way in GOALS if arguments.only in (None, f"{way[0]}-{way[1]}")]
    if arguments.quick:
        ways = [way for way in ways if any(GOALS[way])]
    report(measure(arguments.tasks, ways), arguments, __file__)


if __name__ == "__main__":
    main()
