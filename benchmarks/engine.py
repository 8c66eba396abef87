"""What the engine adds to bare Celery: runs until they wait, and chains of steps that do nothing.

Bare Celery has the stock transport and makes the same calls. The file is also the Celery app of the bare
worker, and the module with the steps of the engine's worker.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil
from celery import Celery, chain, shared_task
from common.results import Row, argument_parser, report
from common.stub_backend import PLUGIN, stub_backend
from redis import Redis

from shared import Publisher, ToTaskMessage
from shared.channels import job_key
from worker.sandbox import wait_for
from worker.sandbox.processes import Process, clean_environment, start_process
from worker.sandbox.sandbox import ALL_QUEUES
from worker.sandbox.servers import RedisServer

MAX_WAIT_SECONDS = 600
THREADS = 8
WARM_UP = 16
WAITING_OVERALL = 22
"""A run that waits for its pre-processor has 10 % from its first step and 60 % of the 20 % of `prepare`."""
QUIET_SECONDS = 2.5
IDLE_SECONDS = 3.0
STEPS = 10
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Size:
    """How many runs are published, and how many chains are walked."""

    runs: int
    chains: int


FULL, QUICK = Size(runs=1_000, chains=500), Size(runs=150, chains=80)

# -- bare Celery: six chained tasks, eight calls, one write a task -----------------------------------------

bare = Celery("bare", broker=os.environ.get("BENCH_REDIS", "memory://"), set_as_current=False)
bare.conf.update(task_ignore_result=True, task_acks_late=True, worker_prefetch_multiplier=1)
bare.conf.broker_transport_options = {"visibility_timeout": 60}

CALLS: tuple[tuple[str, ...], ...] = (
    ("GET jobs/{}/", "PATCH jobs/{}/"),
    ("GET projects/1/",),
    ("GET plugin_releases/1/", "GET serve_applications/"),
    ("PATCH jobs/{}/",),
    ("POST logs/",),
    ("PATCH jobs/{}/",),
)
"""The calls of each of the six tasks."""

_shared: dict[str, Any] = {}


def _client(name: str, make: Callable[[], Any]) -> Any:
    if name not in _shared:
        _shared[name] = make()
    return _shared[name]


def _redis() -> Any:
    return _client("redis", lambda: Redis.from_url(os.environ["BENCH_REDIS"]))


def _http() -> httpx.Client:
    make = lambda: httpx.Client(base_url=os.environ["BENCH_BACKEND"], trust_env=False)  # noqa: E731
    client: httpx.Client = _client("http", make)
    return client


@bare.task(name="walk")
def walk(job: int, number: int) -> None:
    """One of six tasks: its calls, and its write."""
    for call in CALLS[number]:
        method, path = call.split()
        body = None if method == "GET" else {"status": "RUNNING"}
        _http().request(method, path.format(job), json=body).raise_for_status()
    _redis().hset(f"bare:{job}", "step", number)
    if number == len(CALLS) - 1:
        _redis().incr("walked")


@bare.task(name="nothing")
def nothing(is_last: bool) -> None:
    """A step of bare Celery's chain."""
    if is_last:
        _redis().incr("walked")


def publish_walks(_: "Redis", first: int, count: int) -> None:
    """Publish walks, numbered as the engine's jobs are."""
    for job in range(first, first + count):
        chain(*(walk.si(job, number) for number in range(len(CALLS)))).apply_async()


def publish_chains(_: "Redis", _first: int, count: int) -> None:
    """Publish bare chains."""
    for _ in range(count):
        chain(*(nothing.si(number == STEPS - 1) for number in range(STEPS))).apply_async()


# -- the engine --------------------------------------------------------------------------------------------


def register_steps() -> None:
    """The steps of the engine's chain, in the worker's app: each continues with the next one."""
    from worker.runs.model import Continue, Outcome, Suspend
    from worker.to_task.steps import TO_TASK
    from worker.workflow.task import StepTask

    steps = [TO_TASK.step(f"bench.nothing{number}", position=number + 1) for number in range(STEPS)]

    def register(number: int) -> None:
        def outcome(_: Any) -> Outcome:
            if number + 1 < STEPS:
                return Continue(steps[number + 1])
            _redis().incr("walked")
            return Suspend()

        def step(self: Any, job: str, **_: Any) -> None:
            self.run_step(steps[number], job, outcome)

        shared_task(base=StepTask, bind=True, name=steps[number].name)(step)

    for number in range(STEPS):
        register(number)


if os.environ.get("BENCH_STEPS"):
    register_steps()


def message(job: int, pre_processor: int = 1) -> ToTaskMessage:
    """A run that waits for its pre-processor, and finds no tasks when that runs."""
    params = {
        "name": "bench",
        "project": 1,
        "agent": 1,
        "method": "inference",
        "pre_processor": pre_processor,
        "model": 1,
    }
    return ToTaskMessage.model_validate({"job": job, "plugin": PLUGIN, "params": params})


def publish_runs(_: "Redis", first: int, count: int) -> None:
    """Publish `to_task` messages, as a backend does."""
    with Publisher(os.environ["BENCH_REDIS"]) as publisher:
        for job in range(first, first + count):
            publisher.publish(message(job))


def publish_steps(redis: "Redis", first: int, count: int) -> None:
    """Accept runs, and publish the first step of each one's chain."""
    from worker.runs.store import RunStore

    publisher = Celery("publisher", broker=os.environ["BENCH_REDIS"], set_as_current=False)
    store = RunStore(redis)
    for job in range(first, first + count):
        store.accept(message(job), "to_task")
        publisher.send_task("bench.nothing0", kwargs={"job": str(job)}, queue="to_task")
    publisher.close()


_own_commands: Counter[str] = Counter()
"""Commands by which this process looks how far the runs are."""


def count_waiting(redis: "Redis", first: int, count: int) -> int:
    """How many of these runs wait for their pre-processor."""
    _own_commands["hget"] += count
    with redis.pipeline(transaction=False) as pipe:
        for job in range(first, first + count):
            pipe.hget(job_key(str(job)), "overall")
        return sum(float(overall or 0) >= WAITING_OVERALL for overall in pipe.execute())


# -- measuring ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What one walk or chain cost."""

    cpu_ms: float
    rate: float
    commands: float
    calls: dict[str, float]


class Bench:
    """A Redis, the backend's stub, and one worker at a time."""

    def __init__(self, folder: Path, redis_url: str, backend: str) -> None:
        self._folder, self.redis_url, self.backend = folder, redis_url, backend
        self.redis = Redis.from_url(redis_url, decode_responses=True)
        self.start_seconds = 0.0
        """Until the newest worker was ready."""

    @contextmanager
    def worker(
        self, app: str, *options: str, number: int = 0, settings: Mapping[str, str] | None = None
    ) -> Iterator[Process]:
        """A worker of `app`, which is this file's or the project's, while the block runs.

        The first one, with the number 0, finds an empty Redis.
        """
        if number == 0:
            self.redis.flushall()
        env = clean_environment() | {
            "BENCH_REDIS": self.redis_url,
            "BENCH_BACKEND": self.backend,
            "REDIS_URL": self.redis_url,
            "SYNAPSE_HOST": self.backend,
            "SYNAPSE_ACCESS_TOKEN": "bench",
            "PLUGINS_DIR": str(self._folder),
            "WORKER_PLUGIN_HOST": "process",
            **(settings or {}),
        }
        if app == "worker":
            options = ("-Q", ALL_QUEUES, *options)
        celery = [str(Path(sys.executable).with_name("celery")), "-A", app, "worker", "--pool", "threads"]
        celery += ["-c", str(THREADS), "-l", "INFO", "-n", f"{app}{number}@bench", *options]
        log = self._folder / f"{app}{number}.log"
        begun = log.stat().st_size if log.exists() else 0
        started = time.monotonic()
        process = start_process("worker", celery, log=log, env=env, cwd=HERE)
        try:
            process.wait_until(lambda: "ready" in log.read_text()[begun:], MAX_WAIT_SECONDS)
            self.start_seconds = time.monotonic() - started
            # A worker sends task events for a while after its start.
            with Celery("control", broker=self.redis_url, set_as_current=False) as control:
                control.control.disable_events()
            yield process
        finally:
            process.stop()

    def measure(
        self,
        worker: Process,
        publish: Callable[["Redis", int, int], None],
        count_done: Callable[["Redis", int, int], int],
        count: int,
    ) -> Cost:
        """Publish, wait until all are done and nothing follows any more."""
        publish(self.redis, 1, WARM_UP)
        wait_for(lambda: count_done(self.redis, 1, WARM_UP) == WARM_UP, MAX_WAIT_SECONDS, "the warm-up")
        self.await_quiet()
        self.redis.delete("walked")
        self.redis.config_resetstat()
        _own_commands.clear()
        before, calls_before, begun = cpu_seconds(worker), self.calls(), time.monotonic()
        publish(self.redis, 1_001, count)
        wait_for(lambda: count_done(self.redis, 1_001, count) == count, MAX_WAIT_SECONDS, "the walks")
        seconds = time.monotonic() - begun
        self.await_quiet()
        spent, settled = cpu_seconds(worker) - before, time.monotonic()
        calls = {name: total - calls_before[name] for name, total in self.calls().items()}
        stats = self.redis.info("commandstats")
        commands = sum(each["calls"] for each in stats.values()) - _own_commands.total()
        time.sleep(IDLE_SECONDS)
        idle = (cpu_seconds(worker) - before - spent) / (time.monotonic() - settled)
        spent -= idle * (settled - begun - seconds)
        if os.environ.get("BENCH_VERBOSE"):
            print({name: round(each["calls"] / count, 1) for name, each in sorted(stats.items())})
        return Cost(
            cpu_ms=spent / count * 1e3,
            rate=count / seconds,
            commands=commands / count,
            calls={name: total / count for name, total in sorted(calls.items()) if total},
        )

    def calls(self) -> Counter[str]:
        """The requests so far that the backend has answered, by kind."""
        return Counter(httpx.get(f"{self.backend}/counts/", trust_env=False).json())

    def let_pre_processors_run(self) -> None:
        """From now on the backend says that they do."""
        httpx.post(f"{self.backend}/ready/", trust_env=False).raise_for_status()

    def set_latency(self, milliseconds: int) -> None:
        """From now on each answer of the backend takes so long, and writes are counted anew."""
        httpx.post(f"{self.backend}/latency/{milliseconds}/", trust_env=False).raise_for_status()

    def writes(self) -> Any:
        """What was written since the last `set_latency`: `tasks`, `writes`, and their `span`, two times."""
        return httpx.get(f"{self.backend}/writes/", trust_env=False).json()

    def await_quiet(self) -> None:
        """Wait until the jobs are updated no more."""
        known, since = -1, time.monotonic()
        while time.monotonic() - since < QUIET_SECONDS:
            updates = self.calls()["PATCH jobs"]
            if updates != known:
                known, since = updates, time.monotonic()
            time.sleep(0.2)


def cpu_seconds(process: Process) -> float:
    """User and system time of a worker's processes."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in process.pids())


def count_walked(redis: "Redis", _first: int, _count: int) -> int:
    """How many walks or chains have come to their end."""
    return int(redis.get("walked") or 0)


def compare(what: str, bare: Cost, engine: Cost) -> Iterator[Row]:
    """A row a figure."""
    against = "bare Celery, the same calls"
    yield Row(f"{what}: CPU", engine.cpu_ms, "ms", against, bare.cpu_ms)
    yield Row(f"{what}: rate", engine.rate, "a second", against, bare.rate)
    yield Row(f"{what}: commands of Redis", engine.commands, "", against, bare.commands)
    for kind in sorted(engine.calls | bare.calls):
        called, theirs = engine.calls.get(kind, 0.0), bare.calls.get(kind)
        yield Row(f"{what}: requests {kind}", called, "", against, theirs)


@contextmanager
def start_bench() -> Iterator[Bench]:
    """A Redis, the backend's stub and a release, until the block ends."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        server = RedisServer(folder / "redis")
        server.start()
        try:
            with stub_backend(folder) as backend:
                os.environ["BENCH_REDIS"] = bare.conf.broker_url = server.url
                yield Bench(folder, server.url, backend)
        finally:
            bare.close()
            server.stop()


def measure(size: Size) -> Iterator[Row]:
    """Measure bare Celery and the engine, one after the other, in both walks."""
    with start_bench() as bench:
        with bench.worker("engine") as worker:
            bare_walk = bench.measure(worker, publish_walks, count_walked, size.runs)
        with bench.worker("worker") as worker:
            engine_walk = bench.measure(worker, publish_runs, count_waiting, size.runs)
        yield from compare("a run until it waits", bare_walk, engine_walk)
        with bench.worker("engine") as worker:
            bare_chain = bench.measure(worker, publish_chains, count_walked, size.chains)
        with bench.worker("worker", "-I", "engine", settings={"BENCH_STEPS": "1"}) as worker:
            engine_chain = bench.measure(worker, publish_steps, count_walked, size.chains)
        yield from compare(f"a chain of {STEPS} steps that do nothing", bare_chain, engine_chain)


def main() -> None:
    """Measure and report."""
    arguments = argument_parser(__doc__, quick="fewer runs: about a minute").parse_args()
    report(measure(QUICK if arguments.quick else FULL), arguments, __file__)


if __name__ == "__main__":
    main()
