"""The worker's Redis transport against kombu's: delay of a message, CPU of a backlog.

A delay is the time from publishing to the task's first line, on an idle worker and on one that retries other
tasks by countdown all the time. The file is also the Celery app of the workers that it starts.
"""

import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from celery import Celery
from common.results import Row, argument_parser, report
from redis import Redis

from worker.sandbox import wait_for
from worker.sandbox.processes import Process, clean_environment, start_process
from worker.sandbox.servers import RedisServer

SECONDS_BETWEEN_MESSAGES = 0.02
RETRIED_TASKS = 50
MAX_WAIT_SECONDS = 120
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Size:
    """How many messages have their delay measured, and how many are in the backlog."""

    delayed: int
    backlog: int


FULL, QUICK = Size(delayed=300, backlog=5_000), Size(delayed=100, backlog=500)

URL = os.environ.get("BENCH_URL", "memory://")
OPTIONS = {"amqp": "worker.broker:AMQP"} if os.environ.get("BENCH_TRANSPORT") == "worker" else {}
app = Celery("bench", broker=URL, set_as_current=False, **OPTIONS)
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={"visibility_timeout": 60},
)
if OPTIONS:
    app.conf.worker_consumer = "worker.broker.consumer:Consumer"


@app.task(name="record_delay")
def record_delay(published: float) -> None:
    """Record the seconds since the message was published."""
    delay = time.time() - published
    _redis().rpush("delays", delay)


@app.task(name="count")
def count() -> None:
    """Count one message of the backlog."""
    _redis().incr("counted")


@app.task(name="retry_until", bind=True, max_retries=None)
def retry_until(self: Any, until: float) -> None:
    """Retry by countdown until a time, as polls do."""
    if time.time() < until:
        raise self.retry(countdown=random.uniform(0.1, 1.0))


_clients: list["Redis"] = []


def _redis() -> "Redis":
    if not _clients:
        _clients.append(Redis.from_url(URL))
    return _clients[0]


@contextmanager
def _worker(transport: str, server: RedisServer, folder: Path) -> Iterator[Process]:
    env = clean_environment() | {"BENCH_URL": server.url, "BENCH_TRANSPORT": transport}
    celery = [str(Path(sys.executable).with_name("celery")), "-A", "broker", "worker", "--pool", "threads"]
    log = folder / f"{transport}.log"
    process = start_process(
        "worker", [*celery, "-c", "4", "-n", f"{transport}@bench"], log=log, env=env, cwd=HERE
    )
    try:
        process.wait_until(lambda: "[queues]" in process.tail(100), MAX_WAIT_SECONDS)
        yield process
    finally:
        process.stop()


def _delays(publisher: Celery, redis: "Redis", count: int) -> tuple[float, float]:
    """The median and the 99th percentile, in milliseconds."""
    redis.delete("delays")
    for _ in range(count):
        publisher.send_task("record_delay", [time.time()])
        time.sleep(SECONDS_BETWEEN_MESSAGES)
    wait_for(lambda: redis.llen("delays") == count, MAX_WAIT_SECONDS, "delays")
    delays = sorted(float(delay) * 1e3 for delay in redis.lrange("delays", 0, -1))
    return statistics.median(delays), delays[int(0.99 * count)]


def _cpu_seconds(process: Process) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in process.pids())


def measure(transport: str, size: Size, folder: Path) -> dict[str, float]:
    """All figures of one transport, by their descriptions."""
    server = RedisServer(folder / f"redis-{transport}")
    server.start()
    publisher = Celery("publisher", broker=server.url, set_as_current=False)
    publisher.conf.task_ignore_result = True
    figures: dict[str, float] = {}
    try:
        with Redis.from_url(server.url) as redis:
            for _ in range(size.backlog):
                publisher.send_task("count")
            with _worker(transport, server, folder) as worker:
                before = _cpu_seconds(worker)
                wait_for(
                    lambda: int(redis.get("counted") or 0) == size.backlog, MAX_WAIT_SECONDS, "the backlog"
                )
                spent = _cpu_seconds(worker) - before
                figures["CPU a message of a backlog, ms"] = spent / size.backlog * 1e3
                p50, p99 = _delays(publisher, redis, size.delayed)
                figures["delay p50, idle worker, ms"], figures["delay p99, idle worker, ms"] = p50, p99
                until = time.time() + size.delayed * SECONDS_BETWEEN_MESSAGES + 2
                for _ in range(RETRIED_TASKS):
                    publisher.send_task("retry_until", [until])
                p50, p99 = _delays(publisher, redis, size.delayed)
                retried = f"{RETRIED_TASKS} tasks are retried, ms"
                figures[f"delay p50, {retried}"], figures[f"delay p99, {retried}"] = p50, p99
    finally:
        publisher.close()
        server.stop()
    return figures


def compare(size: Size) -> Iterator[Row]:
    """Measure kombu's transport and the worker's, one after the other."""
    with TemporaryDirectory() as folder:
        kombu, worker = (measure(transport, size, Path(folder)) for transport in ("kombu", "worker"))
    for name, value in worker.items():
        what, _, unit = name.rpartition(", ")
        yield Row(f"broker: {what}", value, unit, "stock kombu", kombu[name])


def main() -> None:
    """Measure and report."""
    arguments = argument_parser(__doc__, quick="fewer messages: a minute at most").parse_args()
    report(compare(QUICK if arguments.quick else FULL), arguments, __file__)


if __name__ == "__main__":
    main()
