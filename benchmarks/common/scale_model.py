"""What an installation needs of Redis, backend and workers, from measured costs: multiplied and simulated.

Its messages are simulated one by one through Redis, which serves one command at a time, and through the
workers, each of which has one core: that says how long a message waits, and when a queue only grows.
"""

import heapq
import itertools
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

SECONDS_A_DAY = 86_400
CHUNK = 100
"""Tasks of a message on the queue `annotate`, as WORKER_ANNOTATE_CHUNK has it."""
MAX_CLIENTS = 10_000
"""Redis's own default."""


@dataclass(frozen=True)
class Installation:
    """What an installation has, and what it is to do."""

    name: str
    workers: int
    waiting_runs: int
    tasks_a_day: float
    tasks_a_run: int = 1_000
    pre_processors: int = 100
    peak: float = 3.0
    """The busiest hour's load, against the day's mean."""

    @property
    def tasks(self) -> float:
        """Tasks a second, at the peak."""
        return self.tasks_a_day / SECONDS_A_DAY * self.peak

    @property
    def runs(self) -> float:
        """Runs a second, at the peak."""
        return self.tasks / self.tasks_a_run

    @property
    def runs_a_day(self) -> float:
        """Runs that end in a day; what is stored of them is kept for a day."""
        return self.tasks_a_day / self.tasks_a_run


INSTALLATIONS = (
    Installation(
        "10 workers, 10,000 waiting runs, 1 million tasks a day", 10, 10_000, 1e6, pre_processors=10
    ),
    Installation("100 workers, 100,000 waiting runs, 10 million tasks a day", 100, 100_000, 1e7),
    Installation("1,000 workers, 1 million waiting runs, 100 million tasks a day", 1_000, 1_000_000, 1e8),
)


# -- demand ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demand:
    """What an installation uses at its peak."""

    redis_busy: dict[str, float]
    """Shares of Redis's main thread, by what they are for."""
    broker_busy: float
    """What of them goes with a Redis of the broker's own."""
    redis_gb: float
    connections: float
    worker_cores: float
    requests: float
    """Of the backend, a second."""
    runs_a_second: float
    """That Redis can accept until they wait, when it does nothing else."""


def demand(costs: dict[str, Any], load: Installation) -> Demand:
    """Costs times rates. Each run waits for a pre-processor first, and then costs what one by file does."""
    broker, worker, run = costs["broker"], costs["idle_worker"], costs["run_accepted"]
    task, by_file, poll = costs["task_by_file"], costs["run_by_file"], costs["pre_processor_waited_for"]
    messages = load.tasks / CHUNK + load.runs * STEPS_A_RUN
    # What a message costs one consumer is in the costs of runs and tasks; here it meets all others.
    crowd = messages * max(0, load.workers - 1) * broker["message_redis_us_each_other_consumer"]
    busy = {
        "Redis itself, and the worker that looks for all": costs["redis_alone"]["redis_us_a_second"]
        + costs["elected_worker"]["redis_us_a_second"],
        "idle workers": load.workers * worker["redis_us_a_second"],
        "messages that meet idle workers": crowd,
        "runs": load.runs * (run["redis_us"] + by_file["redis_us"]),
        "polls of pre-processors": load.pre_processors * poll["redis_us_a_second"],
        "tasks": load.tasks * task["redis_us"],
    }
    of_broker = crowd + messages * broker["message_redis_us"]
    of_broker += load.workers * broker["idle_redis_us_a_second_each_other_consumer"]
    ended_bytes = load.runs_a_day * by_file["redis_bytes"] + load.tasks_a_day * task["redis_bytes"]
    worker_ms = load.tasks * task["worker_ms"] + load.runs * (run["worker_ms"] + by_file["worker_ms"])
    requests = load.tasks * task["requests"] + load.runs * (run["requests"] + by_file["requests"])
    return Demand(
        redis_busy={name: used / 1e6 for name, used in busy.items()},
        broker_busy=of_broker / 1e6,
        redis_gb=(load.waiting_runs * run["redis_bytes"] + ended_bytes) / 1024**3,
        connections=load.workers * worker["connections"],
        worker_cores=(worker_ms + load.pre_processors * poll["worker_ms_a_second"]) / 1e3
        + load.workers * worker["cpu_share"],
        requests=requests + load.pre_processors * poll["requests_a_second"],
        runs_a_second=1e6 / run["redis_us"],
    )


# -- simulation --------------------------------------------------------------------------------------------

STEPS_A_RUN = 10
"""Messages of a run from its publishing to its end, chunks apart."""
BEFORE_DELIVERY = 0.5
"""The share of a message's work in Redis that is done before a consumer has it."""


@dataclass(frozen=True)
class Traffic:
    """Messages of one kind: how many a second, their work in Redis and in a worker."""

    rate: float
    redis_us: float
    worker_ms: float


@dataclass(frozen=True)
class Result:
    """What a simulation has seen."""

    redis_busy: float
    worker_busy: float
    delay_p50_ms: float
    delay_p99_ms: float
    is_stable: bool
    """Whether the last tenth of the messages waited no ten times longer than the first."""


def simulate(
    traffic: Sequence[Traffic],
    *,
    workers: int,
    idle_redis_us_a_second: float,
    wake_ms: float,
    seconds: float = 20.0,
    seed: int = 1,
) -> Result:
    """Messages arrive at random; Redis works on each, then the worker that is free first, then Redis again.

    `wake_ms` is what passes between Redis's answer and a task's first line in an idle worker. What idle
    workers ask of Redis comes in between, every hundredth of a second.
    """
    chance = random.Random(seed)
    numbers = itertools.count()
    events: list[tuple[float, int, Any]] = []
    for kind in traffic:
        moment = 0.0
        while (moment := moment + chance.expovariate(kind.rate)) < seconds:
            heapq.heappush(events, (moment, next(numbers), ("arrives", kind, moment)))
    for tick in range(int(seconds * 100)):
        heapq.heappush(events, (tick / 100, next(numbers), ("idle", None, 0.0)))
    free = [0.0] * workers
    redis_free = redis_used = worker_used = 0.0
    delays: list[float] = []
    while events:
        now, _, (what, kind, arrived) = heapq.heappop(events)
        work = idle_redis_us_a_second / 100 if what == "idle" else kind.redis_us * BEFORE_DELIVERY
        redis_free = max(redis_free, now) + work / 1e6
        redis_used += work / 1e6
        if what == "arrives":
            begins = max(redis_free, free[0]) + wake_ms / 1e3
            ends = begins + kind.worker_ms / 1e3
            heapq.heapreplace(free, ends)
            worker_used += kind.worker_ms / 1e3
            delays.append((begins - arrived) * 1e3)
            heapq.heappush(events, (ends, next(numbers), ("ends", kind, arrived)))
    lasted = max(seconds, redis_free)
    tenth = max(1, len(delays) // 10)
    ordered = sorted(delays)
    return Result(
        redis_busy=redis_used / lasted,
        worker_busy=worker_used / lasted / workers,
        delay_p50_ms=statistics.median(ordered),
        delay_p99_ms=ordered[int(0.99 * len(ordered))],
        is_stable=statistics.fmean(delays[-tenth:]) < 10 * statistics.fmean(delays[:tenth]),
    )


def traffic_of(costs: dict[str, Any], load: Installation) -> list[Traffic]:
    """The messages of an installation: chunks of tasks, and the other steps of its runs."""
    used, task, run = demand(costs, load).redis_busy, costs["task_by_file"], costs["run_accepted"]
    chunks, steps = load.tasks / CHUNK, load.runs * STEPS_A_RUN
    crowd = used["messages that meet idle workers"] / (chunks + steps) * 1e6
    worker_ms = run["worker_ms"] + costs["run_by_file"]["worker_ms"]
    return [
        Traffic(chunks, crowd + task["redis_us"] * CHUNK, task["worker_ms"] * CHUNK),
        Traffic(steps, crowd + used["runs"] / steps * 1e6, worker_ms / STEPS_A_RUN),
    ]


def simulate_installation(costs: dict[str, Any], load: Installation) -> Result:
    """The busiest hour of an installation."""
    used = demand(costs, load).redis_busy
    of_work = ("runs", "tasks", "messages that meet idle workers")
    idle = sum(share for name, share in used.items() if name not in of_work)
    return simulate(
        traffic_of(costs, load),
        workers=load.workers,
        idle_redis_us_a_second=idle * 1e6,
        wake_ms=costs["broker"]["delay_p50_ms"],
    )


def simulate_point(costs: dict[str, Any], point: dict[str, float]) -> Result:
    """The measurement of a number of consumers, simulated from the costs of other numbers."""
    broker, others = costs["broker"], point["consumers"] - 1
    each = broker["message_redis_us"] + others * broker["message_redis_us_each_other_consumer"]
    idle = broker["idle_redis_us_a_second"] + others * broker["idle_redis_us_a_second_each_other_consumer"]
    alone = broker["message_redis_us"] / 1e3 * BEFORE_DELIVERY
    return simulate(
        [Traffic(point["rate"], each, 0.0)],
        workers=int(point["consumers"]),
        idle_redis_us_a_second=idle,
        wake_ms=broker["delay_p50_ms"] - alone,
    )


def grown(load: Installation, times: float) -> Installation:
    """The same with more load, and as many more workers."""
    return replace(
        load,
        workers=math.ceil(load.workers * times),
        waiting_runs=int(load.waiting_runs * times),
        tasks_a_day=load.tasks_a_day * times,
    )


def first_full(costs: dict[str, Any], load: Installation) -> tuple[str, float]:
    """Which part is full first when load and workers grow, and at how many times this load."""
    parts: dict[str, Callable[[Demand], float]] = {
        "Redis's main thread": lambda found: sum(found.redis_busy.values()),
        f"Redis's connections (maxclients {MAX_CLIENTS:,})": lambda found: found.connections / MAX_CLIENTS,
    }

    def times_of(used: Callable[[Demand], float]) -> float:
        low, high = 1e-3, 1e6
        while high / low > 1.001:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if used(demand(costs, grown(load, middle))) < 1 else (low, middle)
        return low

    return min(((name, times_of(used)) for name, used in parts.items()), key=lambda part: part[1])
