"""Ten thousand runs in one worker: accepted, waiting, resumed; for one pre-processor and for a hundred.

The rates of bare Celery are those of `engine.py`: the same calls in six chained tasks, and messages that do
nothing.
"""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace

import psutil
from common.results import Row, argument_parser, at_most, report
from engine import (
    MAX_WAIT_SECONDS,
    WARM_UP,
    Bench,
    bare,
    count_walked,
    cpu_seconds,
    message,
    nothing,
    publish_walks,
    start_bench,
)
from redis import Redis

from shared import Publisher
from worker.pre_processor.waitlist import waiting_runs
from worker.sandbox import wait_for
from worker.sandbox.processes import Process

IDLE_SECONDS = 20.0
FIRST_JOB = 1_001
SETTINGS = {"WORKER_PRE_PROCESSOR_TIMEOUT_SECONDS": "7200"}
"""The runs wait for as long as the measurement takes."""


@dataclass(frozen=True)
class Size:
    """How many runs wait, for how many pre-processors, and how many walks of bare Celery give its rate."""

    runs: int
    pre_processors: tuple[int, ...]
    walks: int


FULL, QUICK = Size(10_000, (1, 10, 100), 1_000), Size(200, (1, 20), 150)


@dataclass(frozen=True)
class Bare:
    """What bare Celery does a second: walks with the same calls, and messages that do nothing."""

    walks: float
    messages: float


@dataclass(frozen=True)
class Usage:
    """Seconds of the clock, of the worker's CPU and of Redis's main thread; commands of Redis; requests."""

    seconds: float
    cpu: float
    redis_cpu: float
    commands: int
    requests: int

    def __sub__(self, other: "Usage") -> "Usage":
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Usage(*(mine - others for mine, others in pairs))


@dataclass(frozen=True)
class Figures:
    """One worker with so many runs for so many pre-processors."""

    runs: int
    idle: Usage
    """Before any run."""
    idle_mb: float
    """After the first few."""
    accepted: Usage
    """Until the last run waits; its requests and CPU until nothing follows any more."""
    first_waits: float
    waiting: Usage
    """For as long as `idle`."""
    waiting_mb: float
    waiting_bytes: float
    """In Redis, of one run."""
    left: Usage
    """From the first run that leaves a list until all lists are empty; its CPU until all runs have ended."""

    @property
    def cpu(self) -> float:
        """CPU seconds of the worker in all phases."""
        return self.accepted.cpu + self.waiting.cpu + self.left.cpu


def publish_messages(_: "Redis", _first: int, count: int) -> None:
    """Publish bare messages; each is counted."""
    for _ in range(count):
        nothing.si(True).apply_async()


class ManyRuns:
    """Runs in one worker or more, and how many of them are on a waiting list."""

    def __init__(self, bench: Bench, *workers: Process) -> None:
        self._bench, self._workers, self._redis = bench, workers, bench.redis

    def publish(self, first: int, count: int, pre_processors: int) -> None:
        """Publish runs, each for the next pre-processor."""
        with Publisher(str(bare.conf.broker_url)) as publisher:
            for job in range(first, first + count):
                publisher.publish(message(job, 1 + job % pre_processors))

    def waiting(self) -> int:
        """How many runs wait. A scan of all keys would take Redis half of its time."""
        return sum(waiting_runs(self._redis).values())

    def used(self) -> Usage:
        """What was used so far."""
        redis, stats = self._redis.info("cpu"), self._redis.info("commandstats")
        return Usage(
            time.monotonic(),
            sum(map(cpu_seconds, self._workers)),
            redis["used_cpu_user_main_thread"] + redis["used_cpu_sys_main_thread"],
            sum(each["calls"] for each in stats.values()),
            self._bench.calls().total(),
        )

    def idle(self, seconds: float = IDLE_SECONDS) -> Usage:
        """What it costs to do nothing for a while."""
        before = self.used()
        time.sleep(seconds)
        return self.used() - before

    def megabytes(self) -> float:
        """The memory of the workers' processes."""
        pids = [pid for worker in self._workers for pid in worker.pids()]
        return sum(psutil.Process(pid).memory_info().rss for pid in pids) / 1024**2

    def _wait(self, condition: Callable[[int], bool], seconds: float, what: str) -> None:
        wait_for(lambda: condition(self.waiting()), seconds, what)

    def measure(self, runs: int, pre_processors: int) -> Figures:
        """Accept runs, let them wait, resume them."""
        idle = self.idle()
        self.publish(1, WARM_UP, pre_processors)
        self._wait(lambda waiting: waiting == WARM_UP, MAX_WAIT_SECONDS, "the warm-up")
        self._bench.await_quiet()
        idle_mb, idle_bytes = self.megabytes(), self._redis.info("memory")["used_memory"]
        before_accepting = self.used()
        publisher = threading.Thread(target=self.publish, args=(FIRST_JOB, runs, pre_processors))
        publisher.start()
        self._wait(lambda waiting: waiting > WARM_UP, MAX_WAIT_SECONDS, "the first run")
        first_waits = time.monotonic() - before_accepting.seconds
        publisher.join()
        self._wait(lambda waiting: waiting == WARM_UP + runs, MAX_WAIT_SECONDS + runs, "all runs")
        accepted_at = time.monotonic()
        self._bench.await_quiet()
        accepted = self.used() - before_accepting
        waiting_bytes = (self._redis.info("memory")["used_memory"] - idle_bytes) / runs
        waiting, waiting_mb = self.idle(), self.megabytes()
        self._bench.let_pre_processors_run()
        self._wait(lambda waiting: waiting < WARM_UP + runs, MAX_WAIT_SECONDS, "the poll that resumes")
        before = self.used()
        self._wait(lambda waiting: waiting == 0, MAX_WAIT_SECONDS, "empty waiting lists")
        left_at = time.monotonic()
        self._bench.await_quiet()
        left = self.used() - before
        return Figures(
            runs,
            idle,
            idle_mb,
            replace(accepted, seconds=accepted_at - before_accepting.seconds),
            first_waits,
            waiting,
            waiting_mb,
            waiting_bytes,
            replace(left, seconds=left_at - before.seconds),
        )


def rows_of(pre_processors: int, found: Figures, rates: Bare) -> Iterator[Row]:
    """One row a goal."""
    runs, what = found.runs, f"{found.runs:,} runs, {pre_processors} pre-processors"
    bare_walk, bare_messages = runs / rates.walks, runs / rates.messages
    per_run = f"{found.accepted.cpu / runs * 1e3:.1f} ms of CPU a run"
    per_run += f", {found.accepted.redis_cpu / runs * 1e6:.0f} µs of Redis"
    walks = "bare Celery, the same calls"
    yield Row(f"{what}: accepted", found.accepted.seconds, "s", walks, bare_walk, at_most(1.5), per_run)
    yield Row(
        f"{what}: the first waits",
        found.first_waits,
        "s",
        note=f"20 runs of bare Celery: {20 / rates.walks:.2f} s",
    )
    idle, waiting = found.idle, found.waiting
    for name, used, before in (
        ("a worker's CPU while they wait", waiting.cpu, idle.cpu),
        ("Redis's CPU while they wait", waiting.redis_cpu, idle.redis_cpu),
    ):
        yield Row(
            f"{what}: {name}",
            used / IDLE_SECONDS * 100,
            "% of a core",
            "idle worker",
            before / IDLE_SECONDS * 100,
        )
    yield Row(f"{what}: memory while they wait", found.waiting_mb, "MB", "idle worker", found.idle_mb)
    yield Row(f"{what}: memory of Redis", found.waiting_bytes, "bytes a run")
    polls = (waiting.requests - idle.requests) / IDLE_SECONDS
    yield Row(f"{what}: requests while they wait", polls, "a second")
    left = f"{found.left.cpu / runs * 1e3:.1f} ms of CPU a run to its end"
    yield Row(
        f"{what}: left", found.left.seconds, "s", "as many bare messages", bare_messages, at_most(2), left
    )


def measure(size: Size, runs: int) -> Iterator[Row]:
    """Measure bare Celery, and the worker with each number of pre-processors."""
    with start_bench() as bench:
        with bench.worker("engine") as worker:
            walks = bench.measure(worker, publish_walks, count_walked, size.walks).rate
        with bench.worker("engine") as worker:
            messages = bench.measure(worker, publish_messages, count_walked, runs).rate
    found: dict[int, Figures] = {}
    for count in size.pre_processors:
        # A bench each, because in one whose pre-processors run nothing waits any more.
        with start_bench() as bench, bench.worker("worker", settings=SETTINGS) as worker:
            found[count] = ManyRuns(bench, worker).measure(runs, count)
        yield from rows_of(count, found[count], Bare(walks, messages))
    few, many = min(found), max(found)
    for what, used, theirs in (
        ("in all", found[many].cpu, found[few].cpu),
        ("accepting", found[many].accepted.cpu, found[few].accepted.cpu),
        ("waiting", found[many].waiting.cpu, found[few].waiting.cpu),
        ("leaving", found[many].left.cpu, found[few].left.cpu),
    ):
        yield Row(f"{runs:,} runs: CPU with {many} pre-processors, {what}", used, "s", f"with {few}", theirs)


def main() -> None:
    """Measure and report."""
    parser = argument_parser(__doc__, quick="fewer runs: about two minutes")
    parser.add_argument("--runs", type=int, help="so many runs, in place of 10,000")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    report(measure(size, arguments.runs or size.runs), arguments, __file__)


if __name__ == "__main__":
    main()
