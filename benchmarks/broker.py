"""The Redis transport with stock kombu's in the same run: delay of a message, CPU of a backlog.

Delays run from publishing to the task's first line, on a worker that idles and on one whose tasks are retried
by countdown all the time. The file is also the Celery app of the workers that it starts.
"""

import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from celery import Celery
from redis import Redis

from worker.sandbox import wait_for
from worker.sandbox.processes import Process, clean_environment, start_process
from worker.sandbox.servers import RedisServer

MESSAGES = 300
EVERY = 0.02
"""Seconds between two messages whose delay is measured."""
RETURNING = 50
BACKLOG = 5_000
HERE = Path(__file__).parent

URL = os.environ.get("BENCH_URL", "memory://")
OURS = {"amqp": "worker.broker:AMQP"} if os.environ.get("BENCH_TRANSPORT") == "ours" else {}
app = Celery("bench", broker=URL, set_as_current=False, **OURS)
app.conf.update(
    task_ignore_result=True,
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    broker_transport_options={"visibility_timeout": 60},
)
if OURS:
    app.conf.worker_consumer = "worker.broker.consumer:Consumer"


@app.task(name="note")
def note(published: float) -> None:
    """Write down how long the message was on its way."""
    delay = time.time() - published
    _redis().rpush("delays", delay)


@app.task(name="count")
def count() -> None:
    """One of a backlog."""
    _redis().incr("counted")


@app.task(name="again", bind=True, max_retries=None)
def again(self: Any, until: float) -> None:
    """A poll: is retried by countdown."""
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
        process.wait_until(lambda: "[queues]" in process.tail(100), 30)
        yield process
    finally:
        process.stop()


def _delays(publisher: Celery, redis: "Redis") -> tuple[float, float]:
    """Milliseconds: half of the messages, and 99 of 100."""
    redis.delete("delays")
    for _ in range(MESSAGES):
        publisher.send_task("note", [time.time()])
        time.sleep(EVERY)
    wait_for(lambda: redis.llen("delays") == MESSAGES, 30, "delays")
    delays = sorted(float(delay) * 1e3 for delay in redis.lrange("delays", 0, -1))
    return statistics.median(delays), delays[int(0.99 * MESSAGES)]


def _cpu(process: Process) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in process.pids())


def measure(transport: str, folder: Path) -> dict[str, float]:
    """All figures of one transport."""
    server = RedisServer(folder / f"redis-{transport}")
    server.start()
    publisher = Celery("publisher", broker=server.url, set_as_current=False)
    publisher.conf.task_ignore_result = True
    found: dict[str, float] = {}
    try:
        with Redis.from_url(server.url) as redis:
            for _ in range(BACKLOG):
                publisher.send_task("count")
            with _worker(transport, server, folder) as worker:
                before = _cpu(worker)
                wait_for(lambda: int(redis.get("counted") or 0) == BACKLOG, 120, "the backlog")
                found["CPU a message of a backlog, ms"] = (_cpu(worker) - before) / BACKLOG * 1e3
                found["delay p50, idle worker, ms"], found["delay p99, idle worker, ms"] = _delays(
                    publisher, redis
                )
                until = time.time() + MESSAGES * EVERY + 2
                for _ in range(RETURNING):
                    publisher.send_task("again", [until])
                found["delay p50, 50 tasks are retried, ms"], found["delay p99, 50 tasks are retried, ms"] = (
                    _delays(publisher, redis)
                )
    finally:
        publisher.close()
        server.stop()
    return found


def main() -> None:
    """Measure stock and ours one after the other."""
    with TemporaryDirectory() as folder:
        stock, ours = (measure(transport, Path(folder)) for transport in ("stock", "ours"))
    for what, value in ours.items():
        print(f"{what}: stock {stock[what]:.2f}, ours {value:.2f}, ratio {value / stock[what]:.2f}")


if __name__ == "__main__":
    main()
