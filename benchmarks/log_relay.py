"""The log relay against a baseline: speed of one fast log, delay of many slow logs, takeover after a kill."""

import asyncio
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import psutil
import uvloop
import websockets
from common.results import Row, argument_parser, at_most, report
from redis import Redis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.client import PubSub

sys.path.insert(0, str(Path(__file__).parents[1]))

from shared.channels import logs_channel
from tests.integration.logs.log_relay_harness import ChannelListener, LogRelayHarness
from worker.logs.subscriptions import log_owners_key
from worker.sandbox.processes import start_process, wait_for

RATE = 10
"""Lines a second of each of many logs."""
MEASURED_LOGS = 100
"""Logs whose lines are timed; a listener to all logs would use more CPU than the relay."""
MAX_WAIT_SECONDS = 120


@dataclass(frozen=True)
class Size:
    """How much is measured, and for how long."""

    fast_lines: int
    log_counts: tuple[int, ...]
    settle_seconds: float
    seconds: float
    late_seconds: float
    """A line that does not arrive by then counts as slower than all others."""
    takeovers: int
    protocols: tuple[str, ...] = ("stream", "websocket")


FULL = Size(50_000, (100, 1_000), settle_seconds=10, seconds=15, late_seconds=5, takeovers=3)
QUICK = Size(10_000, (100,), 3, seconds=4, late_seconds=2, takeovers=0, protocols=("stream",))


def measure_fast_log(harness: LogRelayHarness, lines: int) -> Iterator[Row]:
    """Lines a second, from the agent to the channel."""
    ray_job = f"{lines}-0-0-succeeded-fast"
    started = time.perf_counter()
    asyncio.run(baseline_loop(harness, ray_job))
    baseline = lines / (time.perf_counter() - started)
    with relay_process(harness) as process:
        cpu = sum(process.cpu_times()[:2])
        harness.subscribe("fast", ray_job)
        wait_for(lambda: harness.is_claimed("fast", ray_job), MAX_WAIT_SECONDS, "start")
        started = time.perf_counter()
        wait_for(lambda: harness.end_reason("fast") is not None, MAX_WAIT_SECONDS, "end of the fast log")
        seconds = time.perf_counter() - started
        cpu = sum(process.cpu_times()[:2]) - cpu
        memory = process.memory_info().rss / 2**20
    what = f"log relay: one fast log of {lines:,} lines, numbered, masked, kept, published"
    note = f"{cpu:.1f} s of CPU, {memory:.0f} MB"
    yield Row(what, lines / seconds, "lines/s", "httpx, PUBLISH a line", baseline, note=note)


async def baseline_loop(harness: LogRelayHarness, ray_job: str) -> None:
    """The baseline: PUBLISH each line of one log as it comes."""
    url = f"http://127.0.0.1:{harness.agent_port}/jobs/{ray_job}/logs/stream/"
    redis = AsyncRedis.from_url(harness.redis_server.url)
    async with httpx.AsyncClient() as client, client.stream("GET", url) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data:") and line:
                await redis.publish(logs_channel("baseline"), json.dumps({"line": line}))
    await redis.aclose()


def measure_many_logs(harness: LogRelayHarness, count: int, protocol: str, size: Size) -> Iterator[Row]:
    """Delay from the time at which a line is due to its arrival, through the relay and the baseline."""
    jobs = {f"{protocol}{n}": f"{RATE * 600}-{RATE}-0-succeeded-{protocol}{n}" for n in range(count)}
    channels = [logs_channel(job) for job in list(jobs)[:: count // MEASURED_LOGS]]
    with baseline_process(harness, protocol, count) as process:
        baseline = measure(harness, process, channels, size)
    with relay_process(harness) as process:
        for job, ray_job in jobs.items():
            harness.subscribe(job, ray_job, protocol)
        wait_for(lambda: harness.redis.hlen(log_owners_key()) == count, MAX_WAIT_SECONDS, "start of all")
        relayed = measure(harness, process, channels, size)
    harness.redis.flushdb()
    what, against = f"log relay: {count:,} logs at {RATE} lines/s over {protocol}", "bare loop"
    for name, ours, theirs, goal in (
        ("delay p50", relayed.p50, baseline.p50, None),
        ("delay p99", relayed.p99, baseline.p99, at_most(50, of_figure=True)),
    ):
        note = f"{relayed.arrived:.0%} of the lines arrived; {relayed}" if goal else ""
        yield Row(f"{what}: {name}", ours * 1e3, "ms", against, theirs * 1e3, goal, note)
    lines_a_second = count * RATE
    cpu, theirs = (
        found.cpu / (found.arrived * lines_a_second) * 1e6 if found.arrived else math.inf
        for found in (relayed, baseline)
    )
    yield Row(f"{what}: CPU a line", cpu, "µs", against, theirs, at_most(0.5))


@dataclass(frozen=True)
class Measurement:
    """Delays in seconds, and CPU seconds a second of the measured process and of the others involved."""

    arrived: float
    p50: float
    p99: float
    cpu: float
    waited: float
    memory: float
    other_processes: dict[str, float]
    load: float

    def __str__(self) -> str:
        other_processes = ", ".join(f"{name} {cpu:.0%}" for name, cpu in self.other_processes.items())
        return (
            f"{self.cpu:.0%} of a core, waited for one {self.waited:.0%} of the time, {self.memory:.0f} MB;"
            f" {other_processes}; load of the machine {self.load:.1f}"
        )


def measure(
    harness: LogRelayHarness, process: psutil.Process, channels: list[str], size: Size
) -> Measurement:
    """Measure `process` by the lines on `channels`, once it has settled."""
    assert harness.agent is not None
    assert harness.redis_server.process is not None
    redis_pid = harness.redis_server.process.pid
    pids = {"log server": harness.agent.pid, "Redis": redis_pid, "listener": os.getpid()}
    time.sleep(size.settle_seconds)
    with (
        closing(Redis.from_url(harness.redis_server.url)) as redis,
        closing(redis.pubsub(ignore_subscribe_messages=True)) as pubsub,
    ):
        pubsub.subscribe(*channels)
        before, started = {pid: cpu_seconds(pid) for pid in (process.pid, *pids.values())}, time.time()
        delays = list(line_delays(pubsub, started, size))
        seconds = time.time() - started
        spent = {
            pid: [(b - a) / seconds for a, b in zip(before[pid], cpu_seconds(pid), strict=True)]
            for pid in before
        }
    due = int(len(channels) * RATE * size.seconds)
    arrived = len(delays) / due
    # One line more or less may fall into the window of each log.
    delays = sorted([*delays, *[math.inf] * (due - len(delays) - len(channels))])
    p50, p99 = (delays[int(len(delays) * part)] for part in (0.5, 0.99))
    ran, waited = spent[process.pid]
    return Measurement(
        arrived=arrived,
        p50=p50,
        p99=p99,
        cpu=ran,
        waited=waited,
        memory=process.memory_info().rss / 2**20,
        other_processes={name: spent[pid][0] for name, pid in pids.items()},
        load=psutil.getloadavg()[0],
    )


def cpu_seconds(pid: int) -> tuple[float, float]:
    """Seconds for which the threads of a process ran, and for which they waited for a CPU."""
    stats = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(ran) for ran, _, _ in stats) / 1e9, sum(int(waited) for _, waited, _ in stats) / 1e9


def line_delays(pubsub: PubSub, started: float, size: Size) -> Iterator[float]:
    """Delays of the lines due within `size.seconds` that arrive within `size.late_seconds` more."""
    ended = started + size.seconds
    while time.time() < ended + size.late_seconds:
        message = pubsub.get_message(timeout=0.1)
        if message is not None:
            due = float(json.loads(message["data"])["line"].split()[1])
            if started < due <= ended:
                yield time.time() - due


def has_more_entries(listener: ChannelListener, count: int) -> bool:
    """Whether more than so many lines have come."""
    return len(listener.entries) > count


def measure_takeover(harness: LogRelayHarness, count: int) -> Iterator[Row]:
    """Seconds without a line after the relay is killed."""
    waits = []
    for number in range(count):
        job, ray_job = f"killed{number}", f"3000-100-0-succeeded-killed{number}"
        listener = ChannelListener(harness.redis, job)
        first, second = harness.start_relay(), None
        harness.subscribe(job, ray_job)
        wait_for(partial(has_more_entries, listener, 100), MAX_WAIT_SECONDS, "lines")
        second = harness.start_relay()
        time.sleep(2)
        first.kill()
        killed, before = time.perf_counter(), len(listener.entries)
        wait_for(partial(has_more_entries, listener, before + 1), MAX_WAIT_SECONDS, "takeover")
        waits.append(time.perf_counter() - killed)
        second.kill()
        listener.close()
    spread = ", ".join(f"{wait:.1f}" for wait in waits)
    yield Row("log relay: from kill -9 to the next line", statistics.median(waits), "s", note=f"of {spread}")


@contextmanager
def relay_process(harness: LogRelayHarness) -> Iterator[psutil.Process]:
    """A relay process for the duration of the block."""
    process = harness.start_relay()
    time.sleep(3)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()


@contextmanager
def baseline_process(harness: LogRelayHarness, protocol: str, count: int) -> Iterator[psutil.Process]:
    """A baseline process that tails `count` logs, for the duration of the block."""
    arguments = ["--baseline", protocol, str(count), str(harness.agent_port), harness.redis_server.url]
    process = start_process(
        "baseline",
        [sys.executable, __file__, *arguments],
        log=harness.folder / "baseline.log",
        grace_seconds=1,
    )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()


async def run_baseline(protocol: str, count: int, port: int, redis_url: str) -> None:
    """The baseline for many logs: PUBLISH each line as it comes."""
    redis = AsyncRedis.from_pool(BlockingConnectionPool.from_url(redis_url, max_connections=50, timeout=None))
    http = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None))

    async def publish(number: int, line: str) -> None:
        await redis.publish(logs_channel(f"{protocol}{number}"), json.dumps({"line": line}))

    async def follow(number: int) -> None:
        log = f"127.0.0.1:{port}/jobs/{RATE * 600}-{RATE}-0-succeeded-baseline{protocol}{number}/logs/"
        if protocol == "stream":
            async with http.stream("GET", f"http://{log}stream/") as response:
                async for line in response.aiter_lines():
                    await publish(number, line)
        else:
            async with websockets.connect(f"ws://{log}", open_timeout=60) as messages:
                async for message in messages:
                    await publish(number, json.loads(message)["message"])

    await asyncio.gather(*(follow(number) for number in range(count)))


def measure_all(size: Size) -> Iterator[Row]:
    """Run all measurements."""
    with (
        tempfile.TemporaryDirectory(prefix="log-relay-") as folder,
        closing(LogRelayHarness(Path(folder))) as harness,
    ):
        yield from measure_fast_log(harness, size.fast_lines)
        for count in size.log_counts:
            for protocol in size.protocols:
                yield from measure_many_logs(harness, count, protocol, size)
        if size.takeovers:
            yield from measure_takeover(harness, size.takeovers)


if __name__ == "__main__":
    parser = argument_parser(__doc__, quick="fewer lines and logs: half a minute")
    # The process of the baseline, which the benchmark itself starts.
    parser.add_argument("--baseline", nargs=4, metavar=("PROTOCOL", "COUNT", "PORT", "REDIS_URL"))
    arguments = parser.parse_args()
    if arguments.baseline:
        protocol, count, port, redis_url = arguments.baseline
        uvloop.run(run_baseline(protocol, int(count), int(port), redis_url))
    else:
        report(measure_all(QUICK if arguments.quick else FULL), arguments, __file__)
