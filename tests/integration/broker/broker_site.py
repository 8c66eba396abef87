"""A real redis-server and real workers of `tiny_app`; publishers are stock Celery clients."""

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
from worker.broker.delivery import redelivery_key, unacked_key
from worker.sandbox.processes import Process, start_process, wait_for
from worker.sandbox.servers import RedisServer

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent


class Site:
    """One Redis, its workers, a publisher that knows nothing of our transport."""

    def __init__(self, folder: Path, fork_server: ForkServer) -> None:
        self.folder = folder
        self._fork_server = fork_server
        self.server = RedisServer(folder / "redis")
        self.server.start()
        self.url = self.server.url
        """What workers connect to."""
        self.redis = Redis.from_url(self.server.url, decode_responses=True)
        self.app = Celery("publisher", broker=self.server.url, set_as_current=False)
        self.app.conf.update(task_ignore_result=True)
        self.workers: list[Process | Worker] = []

    def worker(
        self,
        *,
        pool: str = "threads",
        concurrency: int = 4,
        vt: float = 10,
        ready: bool = True,
        newer: bool = False,
    ) -> Process | Worker:
        """One of threads is forked from the fork server. `newer`: its release has one more step."""
        name = f"w{len(self.workers)}"
        tiny = {"TINY_URL": self.url, "TINY_VT": str(vt), "TINY_NEWER": str(int(newer))}
        worker = (
            self._forked(name, concurrency, tiny)
            if pool == "threads"
            else self._started(name, pool, concurrency, tiny)
        )
        self.workers.append(worker)
        if ready:
            self.wait(lambda: self.takes_messages(worker), 30, f"{name} takes messages")
        return worker

    def _forked(self, name: str, concurrency: int, tiny: dict[str, str]) -> Worker:
        return self._fork_server.start(
            tiny, concurrency=concurrency, queues="first,second", name=f"{name}@test", folder=self.folder
        )

    def _started(self, name: str, pool: str, concurrency: int, tiny: dict[str, str]) -> Process:
        env = {**os.environ, **tiny, "PYTHONPATH": str(ROOT)}
        celery = [str(Path(sys.executable).with_name("celery")), "-A", "tiny_app", "worker"]
        options = [
            "--pool",
            pool,
            "-c",
            str(concurrency),
            "-Q",
            "first,second",
            "-l",
            "INFO",
            "-n",
            f"{name}@test",
        ]
        log = self.folder / f"{name}.log"
        log.touch()
        return start_process(name, [*celery, *options], log=log, env=env, cwd=HERE, grace_seconds=15)

    def takes_messages(self, worker: Process | Worker) -> bool:
        return worker.log.exists() and "@test ready" in worker.log.read_text()

    def send(self, value: Any, seconds: float = 0, *, queue: str = "first", **options: Any) -> None:
        self.app.send_task("note", [value, seconds], queue=queue, **options)

    def begun(self) -> list[list[str]]:
        """Value, whether redelivered, when."""
        return [entry.split() for entry in self.redis.lrange("begun", 0, -1)]

    def done(self) -> list[str]:
        return self.redis.lrange("done", 0, -1)

    def held(self) -> int:
        with self.redis.pipeline() as pipeline:
            held, due = pipeline.hlen(unacked_key()).zcard(redelivery_key()).execute()
        assert held == due
        return int(held)

    def quiet(self) -> bool:
        """Nothing waits and nothing is held."""
        return not self.redis.llen("first") and not self.redis.llen("second") and not self.held()

    def misses_redis(self, worker: Process | Worker, times: int = 2) -> None:
        """Wait until the worker has tried in vain to reach Redis."""
        said = "broker unavailable"
        self.wait(lambda: worker.tail(1000).count(said) >= times, 6, "the worker misses Redis")

    def letters(self) -> list[dict[str, str]]:
        return [letter for _, letter in self.redis.xrange("synapse:dead_letters")]

    def wait(self, condition: Callable[[], Any], seconds: float, what: str = "condition") -> None:
        """`seconds` is what a quiet machine takes; a busy one gets half a minute more."""
        wait_for(lambda: bool(condition()), seconds + 30, what)

    def close(self) -> None:
        self.app.close()
        self.redis.close()
        for worker in self.workers:
            worker.kill()
        self.server.kill()


def element(
    body: Any = None, *, raw_body: str | None = None, headers: dict[str, Any] | None = None, **changed: Any
) -> dict[str, Any]:
    """An element of a queue as kombu writes it, with parts changed."""
    body = (
        [[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
        if body is None
        else body
    )
    text = json.dumps(body) if raw_body is None else raw_body
    made: dict[str, Any] = {
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
    made["headers"].update(headers or {})
    made.update(changed)
    return made
