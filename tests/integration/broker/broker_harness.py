"""A real redis-server and real workers of `recording_app`; its publisher is a plain Celery client."""

import base64
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery import Celery
from redis import Redis

from tests.chaos.forkserver import ForkServer, Worker
from worker.broker.keys import delayed_key, redelivery_key, unacked_key
from worker.sandbox.processes import Process, start_process, wait_for
from worker.sandbox.servers import RedisServer

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
QUEUES = ("first", "second", "annotate")


class BrokerHarness:
    """One Redis, its workers, and a publisher with kombu's own transport."""

    def __init__(self, folder: Path, fork_server: ForkServer) -> None:
        self.folder = folder
        self._fork_server = fork_server
        self.server = RedisServer(folder / "redis")
        self.server.start()
        self.url = self.server.url
        """The broker URL of workers that are started from now on."""
        self.redis = Redis.from_url(self.server.url, decode_responses=True)
        self.app = Celery("publisher", broker=self.server.url, set_as_current=False)
        self.app.conf.update(task_ignore_result=True)
        self.workers: list[Process | Worker] = []

    def start_worker(
        self,
        *,
        pool: str = "threads",
        concurrency: int = 4,
        visibility_timeout: float = 10,
        wait_until_ready: bool = True,
        newer_release: bool = False,
        prefetch: int = 1,
        queues: str = "first,second",
    ) -> Process | Worker:
        """Start a worker; one with a thread pool is forked, because that is fast.

        `newer_release`: it has a step that the other workers do not have. `prefetch`: messages a thread.
        """
        name = f"w{len(self.workers)}"
        settings = {
            "TEST_APP_URL": self.url,
            "TEST_APP_VISIBILITY_TIMEOUT": str(visibility_timeout),
            "TEST_APP_NEWER_RELEASE": str(int(newer_release)),
            "TEST_APP_PREFETCH": str(prefetch),
        }
        worker = (
            self._fork_worker(name, concurrency, settings, queues)
            if pool == "threads"
            else self._start_celery(name, pool, concurrency, settings, queues)
        )
        self.workers.append(worker)
        if wait_until_ready:
            self.wait_for(lambda: self.is_consuming(worker), 30, f"start of {name}")
        return worker

    def _fork_worker(self, name: str, concurrency: int, settings: dict[str, str], queues: str) -> Worker:
        return self._fork_server.start(
            settings, concurrency=concurrency, queues=queues, name=f"{name}@test", folder=self.folder
        )

    def _start_celery(
        self, name: str, pool: str, concurrency: int, settings: dict[str, str], queues: str
    ) -> Process:
        env = {**os.environ, **settings, "PYTHONPATH": str(ROOT)}
        celery = [str(Path(sys.executable).with_name("celery")), "-A", "recording_app", "worker"]
        options = ["--pool", pool, "-c", str(concurrency), "-Q", queues, "-n", f"{name}@test"]
        log = self.folder / f"{name}.log"
        log.touch()
        return start_process(
            name, [*celery, *options, "-l", "INFO"], log=log, env=env, cwd=HERE, grace_seconds=15
        )

    def is_consuming(self, worker: Process | Worker) -> bool:
        return worker.log.exists() and "@test ready" in worker.log.read_text()

    def send(self, value: Any, seconds: float = 0, *, queue: str = "first", **options: Any) -> None:
        """Publish a task that records its start and, `seconds` later, its end."""
        self.app.send_task("record", [value, seconds], queue=queue, **options)

    def started(self) -> list[list[str]]:
        """Value, whether the message was redelivered, and time of each start of a task."""
        return [entry.split() for entry in self.redis.lrange("started", 0, -1)]

    def ended(self) -> list[str]:
        """The value of each task that has ended."""
        return self.redis.lrange("ended", 0, -1)

    def unacked_count(self) -> int:
        with self.redis.pipeline() as pipeline:
            unacked, redeliveries = pipeline.hlen(unacked_key()).zcard(redelivery_key()).execute()
        assert unacked == redeliveries
        return int(unacked)

    def delayed_count(self) -> int:
        return sum(int(self.redis.zcard(delayed_key(queue))) for queue in QUEUES)

    def is_empty(self) -> bool:
        """No message is in a queue, delayed or unacknowledged."""
        # All at once: what a dead worker held moves to its queue meanwhile, and would be in neither.
        with self.redis.pipeline() as pipeline:
            for queue in QUEUES:
                pipeline.llen(queue).zcard(delayed_key(queue))
            return not any(pipeline.hlen(unacked_key()).execute())

    def wait_for_connection_errors(self, worker: Process | Worker, times: int = 2) -> None:
        """Wait until the worker has logged that it cannot connect to Redis."""
        self.wait_for(
            lambda: worker.tail(1000).count("broker unavailable") >= times,
            6,
            "the worker's connection errors",
        )

    def dead_letters(self) -> list[dict[str, str]]:
        return [letter for _, letter in self.redis.xrange("synapse:dead_letters")]

    def wait_for(self, condition: Callable[[], Any], seconds: float, what: str = "condition") -> None:
        """Wait for `seconds`, the time on an idle machine, and half a minute more for a busy one."""
        wait_for(lambda: bool(condition()), seconds + 30, what)

    def close(self) -> None:
        self.app.close()
        self.redis.close()
        for worker in self.workers:
            worker.kill()
        self.server.kill()


def element(
    body: Any = None, *, raw_body: str | None = None, headers: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """An element of a queue as kombu writes it, with changes."""
    body = (
        [[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
        if body is None
        else body
    )
    text = json.dumps(body) if raw_body is None else raw_body
    envelope: dict[str, Any] = {
        "body": base64.b64encode(text.encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {
            "lang": "py",
            "task": "noop",
            "id": str(uuid4()),
            "retries": 0,
            "eta": None,
            "expires": None,
        },
        "properties": {
            "correlation_id": str(uuid4()),
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "first"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid4()),
        },
    }
    envelope["headers"].update(headers or {})
    envelope.update(changes)
    return envelope
