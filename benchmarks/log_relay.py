"""The log relay: speed of one fast log against a bare loop, delay of many slow ones, takeover."""

import asyncio
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import uvloop
import websockets
from redis import Redis
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.client import PubSub

sys.path.insert(0, str(Path(__file__).parents[1]))

from shared.channels import logs_channel
from tests.integration.logs.log_site import Listener, LogSite
from worker.logs.subscriptions import OWNERS
from worker.sandbox.processes import start, wait_for

FAST_LINES = 50_000
LOGS, RATE, SECONDS = (100, 1_000), 10, 15
SETTLE_SECONDS = 10
LATE_SECONDS = 5
"""A line that is not heard by then counts as one that takes longer than all others."""
HEARD = 100
"""Logs whose lines are timed; a listener to all of them would be busier than the relay."""


def one_fast_log(site: LogSite) -> None:
    """Lines a second, from the agent to the channel."""
    ray_job = f"{FAST_LINES}-0-0-succeeded-fast"
    started = time.perf_counter()
    asyncio.run(bare_loop(site, ray_job))
    bare = FAST_LINES / (time.perf_counter() - started)
    with relay(site) as process:
        cpu = sum(process.cpu_times()[:2])
        site.book("fast", ray_job)
        wait_for(lambda: site.is_followed("fast", ray_job), 10, "start")
        started = time.perf_counter()
        wait_for(lambda: site.end_of("fast") is not None, 120, "end of the fast log")
        seconds = time.perf_counter() - started
        cpu = sum(process.cpu_times()[:2]) - cpu
        memory = process.memory_info().rss / 2**20
    relayed = FAST_LINES / seconds
    print(f"one fast log of {FAST_LINES:,} lines: bare loop (httpx, PUBLISH a line) {bare:,.0f} lines/s")
    print(
        f"  relay (numbered, masked, kept, published) {relayed:,.0f} lines/s: {relayed / bare:.2f} times the"
    )
    print(f"  bare loop; {cpu:.1f} s of CPU, {memory:.0f} MB")


async def bare_loop(site: LogSite, ray_job: str) -> None:
    """What anybody would write: a line in, a PUBLISH out."""
    url = f"http://127.0.0.1:{site.agent_port}/jobs/{ray_job}/logs/stream/"
    redis = AsyncRedis.from_url(site.server.url)
    async with httpx.AsyncClient() as client, client.stream("GET", url) as response:
        async for line in response.aiter_lines():
            if not line.startswith("data:") and line:
                await redis.publish(logs_channel("bare"), json.dumps({"line": line}))
    await redis.aclose()


def many_logs(site: LogSite, count: int, protocol: str) -> None:
    """Delay from the moment at which a line was due to a listener, through the relay and a bare loop."""
    jobs = {f"{protocol}{n}": f"{RATE * 600}-{RATE}-0-succeeded-{protocol}{n}" for n in range(count)}
    heard = [logs_channel(job) for job in list(jobs)[:: count // HEARD]]
    print(f"{count:,} logs at {RATE} lines/s over {protocol}, from due to listener:")
    with bare_loops(site, protocol, count) as process:
        bare = measured(site, process, heard)
    with relay(site) as process:
        for job, ray_job in jobs.items():
            site.book(job, ray_job, protocol)
        wait_for(lambda: site.redis.hlen(OWNERS) == count, 60, "start of all")
        relayed = measured(site, process, heard)
    site.redis.flushdb()
    print(f"  bare loop {bare}")
    print(f"  relay     {relayed}")
    per_line = (relayed.cpu / relayed.arrived) / (bare.cpu / bare.arrived) if bare.arrived else 0
    print(f"  CPU of the relay for a line: {per_line:.2f} times the bare loop's")


@dataclass(frozen=True)
class Measured:
    """Delays in seconds, and CPU in seconds a second, of whoever carries the lines and of those around it."""

    arrived: float
    p50: float
    p99: float
    cpu: float
    waited: float
    memory: float
    around: dict[str, float]
    load: float

    def __str__(self) -> str:
        around = ", ".join(f"{name} {cpu:.0%}" for name, cpu in self.around.items())
        return (
            f"p50 {self.p50 * 1000:.0f} ms, p99 {self.p99 * 1000:.0f} ms, {self.arrived:.0%} of lines came;\n"
            f"    {self.cpu:.0%} of a core, waited for {self.waited:.0%} of the time; {self.memory:.0f} MB\n"
            f"    ({around}; load of the machine {self.load:.1f} on {psutil.cpu_count()} cores)"
        )


def measured(site: LogSite, process: psutil.Process, heard: list[str]) -> Measured:
    """What `process` carries to the channels `heard`, once it has settled."""
    assert site.agent is not None
    assert site.server.process is not None
    pids = {"log server": site.agent.pid, "Redis": site.server.process.pid, "listener": os.getpid()}
    time.sleep(SETTLE_SECONDS)
    with (
        closing(Redis.from_url(site.server.url)) as redis,
        closing(redis.pubsub(ignore_subscribe_messages=True)) as pubsub,
    ):
        pubsub.subscribe(*heard)
        before, began = {pid: on_a_core(pid) for pid in (process.pid, *pids.values())}, time.time()
        delays = list(heard_delays(pubsub, began))
        seconds = time.time() - began
        spent = {
            pid: [(b - a) / seconds for a, b in zip(before[pid], on_a_core(pid), strict=True)]
            for pid in before
        }
    due = len(heard) * RATE * SECONDS
    arrived = len(delays) / due
    # One line more or less may fall into the window of each log.
    delays = sorted([*delays, *[math.inf] * (due - len(delays) - len(heard))])
    p50, p99 = (delays[int(len(delays) * part)] for part in (0.5, 0.99))
    ran, waited = spent[process.pid]
    return Measured(
        arrived=arrived,
        p50=p50,
        p99=p99,
        cpu=ran,
        waited=waited,
        memory=process.memory_info().rss / 2**20,
        around={name: spent[pid][0] for name, pid in pids.items()},
        load=psutil.getloadavg()[0],
    )


def on_a_core(pid: int) -> tuple[float, float]:
    """Seconds that the threads of a process ran, and seconds that they were ready and had to wait."""
    stats = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(ran) for ran, _, _ in stats) / 1e9, sum(int(waited) for _, waited, _ in stats) / 1e9


def heard_delays(pubsub: PubSub, began: float) -> Iterator[float]:
    """Of the lines that were due within `SECONDS`, as far as they came within `LATE_SECONDS` more."""
    ended = began + SECONDS
    while time.time() < ended + LATE_SECONDS:
        message = pubsub.get_message(timeout=0.1)
        if message is not None:
            due = float(json.loads(message["data"])["line"].split()[1])
            if began < due <= ended:
                yield time.time() - due


def takeover(site: LogSite) -> None:
    """Seconds of silence after a kill."""
    waits = []
    for number in range(3):
        job, ray_job = f"killed{number}", f"3000-100-0-succeeded-killed{number}"
        listener = Listener(site.redis, job)
        first, second = site.relay(), None
        site.book(job, ray_job)
        wait_for(lambda listener=listener: len(listener.entries) > 100, 20, "lines")
        second = site.relay()
        time.sleep(2)
        first.kill()
        killed, before = time.perf_counter(), len(listener.entries)
        wait_for(lambda listener=listener, before=before: len(listener.entries) > before + 1, 40, "takeover")
        waits.append(time.perf_counter() - killed)
        second.kill()
        listener.close()
    print(f"takeover after kill -9: {', '.join(f'{wait:.1f}' for wait in waits)} s until the next line")


@contextmanager
def relay(site: LogSite) -> Iterator[psutil.Process]:
    """A relay's process for as long as the block lasts."""
    process = site.relay()
    time.sleep(3)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()


@contextmanager
def bare_loops(site: LogSite, protocol: str, count: int) -> Iterator[psutil.Process]:
    """A process that follows so many logs and publishes each line as it comes."""
    arguments = [protocol, str(count), str(site.agent_port), site.server.url]
    process = start("bare", [sys.executable, __file__, *arguments], log=site.folder / "bare.log", grace=1)
    try:
        yield psutil.Process(process.pid)
    finally:
        process.kill()


async def follow_barely(protocol: str, count: int, port: int, redis_url: str) -> None:
    """What anybody would write, for many logs."""
    redis = AsyncRedis.from_pool(BlockingConnectionPool.from_url(redis_url, max_connections=50, timeout=None))
    http = httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None))

    async def publish(number: int, line: str) -> None:
        await redis.publish(logs_channel(f"{protocol}{number}"), json.dumps({"line": line}))

    async def follow(number: int) -> None:
        log = f"127.0.0.1:{port}/jobs/{RATE * 600}-{RATE}-0-succeeded-bare{protocol}{number}/logs/"
        if protocol == "stream":
            async with http.stream("GET", f"http://{log}stream/") as response:
                async for line in response.aiter_lines():
                    await publish(number, line)
        else:
            async with websockets.connect(f"ws://{log}", open_timeout=60) as messages:
                async for message in messages:
                    await publish(number, json.loads(message)["message"])

    await asyncio.gather(*(follow(number) for number in range(count)))


def main() -> None:
    """Everything in one run."""
    with tempfile.TemporaryDirectory(prefix="log-relay-") as folder, closing(LogSite(Path(folder))) as site:
        one_fast_log(site)
        for count in LOGS:
            many_logs(site, count, "stream")
            many_logs(site, count, "websocket")
        takeover(site)


if __name__ == "__main__":
    if sys.argv[1:]:
        protocol, count, port, redis_url = sys.argv[1:]
        uvloop.run(follow_barely(protocol, int(count), int(port), redis_url))
    else:
        main()
