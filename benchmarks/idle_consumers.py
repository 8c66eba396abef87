"""What a message costs Redis while other consumers are idle, on kombu's transport and on the worker's.

Connections in a few processes stand for workers. Messages come one by one, each to one of five queues. What
the same consumers cost without messages is subtracted, and is a figure of its own.
"""

import multiprocessing
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kombu
from common.results import Row, argument_parser, report
from kombu.asynchronous import Hub
from redis import Redis

import worker.broker
from worker.sandbox import SandboxError, wait_for
from worker.sandbox.servers import RedisServer

QUEUES = ("deploy", "to_task", "annotate", "logs", "control")
IDLE_CONSUMERS = (1, 50, 200)
MAX_PROCESSES = 4
SECONDS_BETWEEN_MESSAGES = 0.01
IDLE_SECONDS = 4.0
FULL, QUICK = 1000, 300
"""Messages of each measurement."""

CONNECTIONS = {"kombu": kombu.Connection, "worker": worker.broker.Connection}


def consume(transport: str, url: str, consumers: int, started: Any, delays: Any) -> None:
    """Consume with so many consumers until the process is ended; put each message's delay in `delays`."""

    def on_message(body: Any, message: Any) -> None:
        delays.put(time.time() - body)
        message.ack()

    hub = Hub()
    for _ in range(consumers):
        connection = CONNECTIONS[transport](url)
        queues = [kombu.Queue(name) for name in QUEUES]
        kombu.Consumer(connection, queues, callbacks=[on_message], prefetch_count=4).consume()
        connection.register_with_event_loop(hub)
    started.release()
    hub.run_forever()


@contextmanager
def consumers(transport: str, url: str, count: int) -> Iterator[Any]:
    """So many idle consumers; yields the queue of their messages' delays."""
    context = multiprocessing.get_context("spawn")
    delays, started = context.Queue(), context.Semaphore(0)
    sizes = [len(range(number, count, MAX_PROCESSES)) for number in range(min(count, MAX_PROCESSES))]
    processes = [
        context.Process(target=consume, args=(transport, url, size, started, delays), daemon=True)
        for size in sizes
    ]
    for process in processes:
        process.start()
    try:
        for _ in processes:
            started.acquire(timeout=60)
        yield delays
    finally:
        for process in processes:
            process.kill()
            process.join()


def _used(redis: "Redis") -> tuple[float, float, float]:
    """Redis's CPU in microseconds, commands from clients, and scripts."""
    cpu, commands = redis.info("cpu"), redis.info("commandstats")
    calls = {name: stats["calls"] for name, stats in commands.items()}
    scripts = calls.get("cmdstat_eval", 0) + calls.get("cmdstat_evalsha", 0)
    used = cpu["used_cpu_user_main_thread"] + cpu["used_cpu_sys_main_thread"]
    return used * 1e6, redis.info("stats")["total_commands_processed"], scripts


def _difference(redis: "Redis", before: tuple[float, ...]) -> list[float]:
    return [now - then for now, then in zip(_used(redis), before, strict=True)]


def measure(transport: str, count: int, messages: int, folder: Path) -> dict[tuple[str, str], float]:
    """All figures for so many idle consumers, by their descriptions and units."""
    server = RedisServer(folder / f"redis-{transport}-{count}")
    server.start()
    try:
        with (
            Redis.from_url(server.url) as redis,
            kombu.Connection(server.url) as connection,
            consumers(transport, server.url, count) as delays,
        ):
            producer = connection.Producer()
            for name in QUEUES:
                kombu.Queue(name, channel=connection.default_channel).declare()
            with suppress(SandboxError):
                wait_for(lambda: redis.info("clients")["blocked_clients"] >= count - 1, 20, "idle consumers")
            time.sleep(2)
            before, began = _used(redis), time.monotonic()
            time.sleep(IDLE_SECONDS)
            idle = [used / (time.monotonic() - began) for used in _difference(redis, before)]
            before, began = _used(redis), time.monotonic()
            for _ in range(messages):
                producer.publish(time.time(), routing_key=random.choice(QUEUES))
                time.sleep(SECONDS_BETWEEN_MESSAGES)
            seconds = time.monotonic() - began
            found = sorted(delays.get(timeout=30) * 1e3 for _ in range(messages))
            used = _difference(redis, before)
            cpu, commands, scripts = (
                (with_messages - rate * seconds) / messages
                for with_messages, rate in zip(used, idle, strict=True)
            )
            wait_for(lambda: not any(redis.llen(name) for name in QUEUES), 10, "empty queues")
            return {
                ("Redis CPU a message", "µs"): cpu,
                ("Redis CPU a message with what idling costs", "µs"): used[0] / messages,
                ("commands a message, those of scripts included", ""): commands,
                ("scripts a message", ""): scripts,
                ("delay p50", "ms"): statistics.median(found),
                ("delay p99", "ms"): found[int(0.99 * messages)],
                ("Redis CPU a second without messages", "µs"): idle[0],
            }
    finally:
        server.stop()


def compare(messages: int) -> Iterator[Row]:
    """Measure both transports with each number of consumers."""
    figures: dict[tuple[str, int], dict[tuple[str, str], float]] = {}
    with TemporaryDirectory() as folder:
        for count in IDLE_CONSUMERS:
            for transport in CONNECTIONS:
                figures[transport, count] = measure(transport, count, messages, Path(folder))
    for count in IDLE_CONSUMERS:
        for (name, unit), value in figures["worker", count].items():
            stock, alone = figures["kombu", count][name, unit], figures["worker", 1][name, unit]
            note = f"{value / alone:.2f} of one consumer's" if count > 1 and alone > 0.05 else ""
            what = f"{count} idle consumers: {name}"
            yield Row(what, value, unit, "stock kombu", stock if stock > 0.05 else None, note=note)


def main() -> None:
    """Measure and report."""
    arguments = argument_parser(__doc__, quick="fewer messages: a minute at most").parse_args()
    report(compare(QUICK if arguments.quick else FULL), arguments, __file__)


if __name__ == "__main__":
    main()
