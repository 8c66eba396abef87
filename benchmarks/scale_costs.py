"""What messages, runs, tasks and idle workers cost, for `simulate.py`; writes `results/scale_costs.json`.

A worker's consumer of all queues is a channel here, many of them in a few processes. Redis's CPU is that of
its main thread, which serves all commands.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kombu
from annotate import message_of
from engine import HERE, MAX_WAIT_SECONDS, Bench, start_bench
from idle_consumers import QUEUES, consumers
from many_runs import FIRST_JOB, SETTINGS, ManyRuns, Usage
from redis import Redis

from shared import Publisher
from shared.channels import job_key
from worker.sandbox import wait_for
from worker.sandbox.servers import RedisServer

RESULTS = HERE / "results" / "scale_costs.json"
WARM_UP_SECONDS = 3.0
IDLE_SECONDS = 5.0
FIT = (1, 20)
"""Consumers from whose costs those of any number are derived."""
CHECKED = (1, 10, 100)
"""Consumers with which the simulation is compared."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
IDLE_WORKERS = 4
SMALL_RUN, LARGE_RUN = 100, 2_000
"""Tasks of the runs from whose costs those of a run and of a task are derived."""


@dataclass(frozen=True)
class Size:
    """Messages a measurement and their rates a second; runs that wait; runs by file."""

    messages: int
    rates: tuple[int, ...]
    waiting: int
    pre_processors: int
    by_file: int


FULL = Size(messages=500, rates=(50, 150), waiting=1_000, pre_processors=10, by_file=4)
QUICK = Size(messages=200, rates=(50,), waiting=100, pre_processors=5, by_file=1)


# -- the broker --------------------------------------------------------------------------------------------


def redis_used(redis: "Redis") -> tuple[float, int]:
    """Microseconds of Redis's main thread so far, and commands, those in scripts included."""
    cpu, stats = redis.info("cpu"), redis.info("commandstats")
    seconds = cpu["used_cpu_user_main_thread"] + cpu["used_cpu_sys_main_thread"]
    return seconds * 1e6, sum(each["calls"] for each in stats.values())


def measure_broker(count: int, rates: tuple[int, ...], messages: int) -> list[dict[str, float]]:
    """With so many consumers: what they cost idle, and messages at these rates."""
    found = []
    with TemporaryDirectory() as folder:
        server = RedisServer(Path(folder))
        server.start()
        try:
            with (
                Redis.from_url(server.url) as redis,
                kombu.Connection(server.url) as connection,
                consumers("worker", server.url, count) as delays,
            ):
                time.sleep(WARM_UP_SECONDS)
                idle, _ = redis_used(redis)
                time.sleep(IDLE_SECONDS)
                idle = (redis_used(redis)[0] - idle) / IDLE_SECONDS
                memory = (
                    redis.info("memory")["mem_clients_normal"] / redis.info("clients")["connected_clients"]
                )
                clients = redis.info("clients")["connected_clients"] - 2
                for rate in rates:
                    found.append(_measure_rate(redis, connection, delays, rate, messages))
                    found[-1] |= {
                        "consumers": count,
                        "idle_redis_us_a_second": idle,
                        "connections": clients,
                        "bytes_a_connection": memory,
                    }
        finally:
            server.stop()
    return found


def _measure_rate(redis: "Redis", connection: Any, delays: Any, rate: int, messages: int) -> dict[str, float]:
    producer = connection.Producer()
    for name in QUEUES:
        kombu.Queue(name, channel=connection.default_channel).declare()
    used, commands = redis_used(redis)
    begun = time.monotonic()
    for number in range(messages):
        time.sleep(max(0.0, begun + number / rate - time.monotonic()))
        producer.publish(time.time(), routing_key=random.choice(QUEUES))
    found = sorted(delays.get(timeout=MAX_WAIT_SECONDS) * 1e3 for _ in range(messages))
    seconds = time.monotonic() - begun
    used_after, commands_after = redis_used(redis)
    return {
        "rate": messages / seconds,
        "redis_busy": (used_after - used) / 1e6 / seconds,
        "commands_a_message": (commands_after - commands) / messages,
        "delay_p50_ms": statistics.median(found),
        "delay_p99_ms": found[int(0.99 * messages)],
    }


def fit_broker(
    with_few: Sequence[dict[str, float]], with_many: Sequence[dict[str, float]]
) -> dict[str, float]:
    """Costs as lines through two numbers of consumers."""

    def message_us(points: Sequence[dict[str, float]]) -> float:
        return statistics.fmean(
            (point["redis_busy"] * 1e6 - point["idle_redis_us_a_second"]) / point["rate"] for point in points
        )

    few, many = with_few[0], with_many[0]
    consumers = many["consumers"] - few["consumers"]
    each = max(0.0, (message_us(with_many) - message_us(with_few)) / consumers)
    idle = max(0.0, (many["idle_redis_us_a_second"] - few["idle_redis_us_a_second"]) / consumers)
    return {
        "message_redis_us": message_us(with_few),
        "message_redis_us_each_other_consumer": each,
        "commands_a_message": few["commands_a_message"],
        "idle_redis_us_a_second": few["idle_redis_us_a_second"],
        "idle_redis_us_a_second_each_other_consumer": idle,
        "delay_p50_ms": few["delay_p50_ms"],
    }


# -- a worker ----------------------------------------------------------------------------------------------


def measure_idle() -> dict[str, dict[str, float]]:
    """Workers without work: Redis alone, the first, and each other one, which does less than the first."""
    found: list[Usage] = []
    with start_bench() as bench, ExitStack() as stack:
        found.append(ManyRuns(bench).idle())
        workers = [stack.enter_context(bench.worker("worker"))]
        connections = len(bench.redis.client_list())
        found.append(ManyRuns(bench, *workers).idle())
        more = (bench.worker("worker", number=number) for number in range(1, IDLE_WORKERS))
        workers += map(stack.enter_context, more)
        connections = len(bench.redis.client_list()) - connections
        found.append(ManyRuns(bench, *workers).idle())
        megabytes = ManyRuns(bench, *workers).megabytes() / IDLE_WORKERS
    alone, one, many = found
    others = IDLE_WORKERS - 1
    each = (many.redis_cpu - one.redis_cpu) / others
    return {
        "redis_alone": {"redis_us_a_second": alone.redis_cpu / alone.seconds * 1e6},
        "elected_worker": {
            "redis_us_a_second": max(0.0, one.redis_cpu - alone.redis_cpu - each) / one.seconds * 1e6
        },
        "idle_worker": {
            "redis_us_a_second": max(0.0, each) / many.seconds * 1e6,
            "commands_a_second": (many.commands - one.commands) / others / many.seconds,
            "cpu_share": many.cpu / IDLE_WORKERS / many.seconds,
            "megabytes": megabytes,
            "connections": connections / others,
        },
    }


def measure_waiting(size: Size) -> dict[str, dict[str, float]]:
    """Runs that are accepted, wait and leave, and the worker before them."""
    with start_bench() as bench, bench.worker("worker", settings=SETTINGS) as worker:
        found = ManyRuns(bench, worker).measure(size.waiting, size.pre_processors)
    waiting, seconds, runs = found.waiting - found.idle, found.idle.seconds, size.waiting
    return {
        "run_accepted": {
            "redis_us": found.accepted.redis_cpu / runs * 1e6,
            "commands": found.accepted.commands / runs,
            "worker_ms": found.accepted.cpu / runs * 1e3,
            "requests": found.accepted.requests / runs,
            "redis_bytes": found.waiting_bytes,
        },
        "pre_processor_waited_for": {
            "redis_us_a_second": max(0.0, waiting.redis_cpu) / seconds / size.pre_processors * 1e6,
            "worker_ms_a_second": max(0.0, waiting.cpu) / seconds / size.pre_processors * 1e3,
            "requests_a_second": max(0.0, waiting.requests) / seconds / size.pre_processors,
        },
        "run_resumed": {
            "redis_us": found.left.redis_cpu / runs * 1e6,
            "worker_ms": found.left.cpu / runs * 1e3,
            "requests": found.left.requests / runs,
        },
    }


def measure_by_file(size: Size) -> dict[str, dict[str, float]]:
    """Runs by file of two sizes, one after the other; a task's costs are the slope between them."""
    used: dict[int, Any] = {}
    with start_bench() as bench, bench.worker("worker") as worker:
        runs = ManyRuns(bench, worker)
        _run_by_file(bench, 1, 1, SMALL_RUN)
        first = FIRST_JOB
        for tasks in (SMALL_RUN, LARGE_RUN):
            bench.await_quiet()
            idle = runs.idle()
            before = runs.used()
            _run_by_file(bench, first, size.by_file, tasks)
            found = runs.used() - before
            # What the worker does anyway belongs to nobody's run.
            share = found.seconds / idle.seconds
            used[tasks] = (
                (found.redis_cpu - idle.redis_cpu * share) / size.by_file * 1e6,
                (found.commands - idle.commands * share) / size.by_file,
                (found.cpu - idle.cpu * share) / size.by_file * 1e3,
                (found.requests - idle.requests * share) / size.by_file,
                found.seconds / size.by_file,
                _bytes_of(bench.redis, first),
            )
            first += size.by_file
    names = ("redis_us", "commands", "worker_ms", "requests", "seconds", "redis_bytes")
    small, large = (dict(zip(names, used[tasks], strict=True)) for tasks in (SMALL_RUN, LARGE_RUN))
    task = {name: (large[name] - small[name]) / (LARGE_RUN - SMALL_RUN) for name in names}
    return {
        "task_by_file": task,
        "run_by_file": {name: max(0.0, small[name] - SMALL_RUN * task[name]) for name in names},
    }


def _bytes_of(redis: "Redis", job: int) -> int:
    """What Redis keeps of a job."""
    keys = redis.scan_iter(f"{job_key(str(job))}*", count=100_000)
    return sum(redis.memory_usage(key, samples=0) or 0 for key in keys)


def _has_ended(bench: Bench, key: str) -> bool:
    return bench.redis.hget(key, "status") in ENDED


def _run_by_file(bench: Bench, first: int, count: int, tasks: int) -> None:
    """Publish runs one after the other, each when the one before it has ended."""
    with Publisher(bench.redis_url) as publisher:
        for job in range(first, first + count):
            publisher.publish(message_of(job, tasks))
            key = job_key(str(job))
            wait_for(partial(_has_ended, bench, key), MAX_WAIT_SECONDS, f"job {job}")
            if bench.redis.hget(key, "status") != "SUCCEEDED":
                raise RuntimeError(f"job {job} failed: {bench.redis.hget(key, 'error')}")


# -- all of it ---------------------------------------------------------------------------------------------


def measure(size: Size) -> dict[str, Any]:
    """All costs, and the points with which the simulation is compared."""
    points = [point for count in CHECKED for point in measure_broker(count, size.rates, size.messages)]
    few, many = (measure_broker(count, size.rates, size.messages) for count in FIT)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True, cwd=HERE
    ).stdout.strip()
    return {
        "measured": {
            "date": time.strftime("%Y-%m-%d"),
            "commit": commit,
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
        },
        "broker": fit_broker(few, many),
        **measure_idle(),
        **measure_waiting(size),
        **measure_by_file(size),
        "points": points,
    }


def main() -> None:
    """Measure and print; with --write, keep the figures for the simulation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer messages and runs: about three minutes")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(HERE.parent)}")
    arguments = parser.parse_args()
    costs = measure(QUICK if arguments.quick else FULL)
    text = json.dumps(costs, indent=2)
    if arguments.write:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
