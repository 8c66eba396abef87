"""What annotating adds to a bare loop of the same requests: by file and by inference, at 0 and at 20 ms.

The bare loop fetches and writes each task (and asks for its inference in between) with aiohttp, with as many
requests in flight as the worker has. The file is also (with --stub) the backend of both, in a process of its
own.
"""

import argparse
import asyncio
import json
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import aiohttp
import httpx
import psutil
from redis import Redis

from shared import Publisher, ToTaskMessage
from worker.sandbox import wait_for
from worker.sandbox.processes import Process, clean_environment, free_port, is_listening, start_process
from worker.sandbox.servers import RedisServer

MAX_WAIT_SECONDS = 600
IN_FLIGHT = 64
FULL, QUICK = 2_000, 600
"""Tasks of a measurement."""
WARM_UP = 200
LATENCIES_MS = (20, 0)
METHODS = ("file", "inference")
HERE = Path(__file__).parent

CONFIG = "code: bench\nversion: 1.0.0\nactions:\n  to_task: {entrypoint: plugin.ToTask}\n"
CODE = """
from worker.actions import ToTaskAction

class ToTask(ToTaskAction):
    def convert_data_from_file(self, *args, **kwargs):
        return {"annotations": [{"id": 1, "label": "cat"}]}

    def prepare_inference_params(self, *args, **kwargs):
        return {"method": "post", "json": {"text": "x"}}

    def convert_data_from_inference(self, inference_data, task_data=None):
        return {"annotations": [inference_data]}
"""
FILES = {
    "image": {"url": "http://127.0.0.1/a.png", "file_name_original": "a.png", "is_primary": True},
    "data": {"url": "http://127.0.0.1/a.json", "file_name_original": "a.json", "is_primary": False},
}
RELEASE_CONFIG = {"code": "bench", "actions": {"inference": {}}}
APPLICATION = {"id": 1, "status": "RUNNING", "job": 1, "version": "1.0.0", "plugin_code": "bench", "data": {}}


# -- the backend of both -----------------------------------------------------------------------------------


class StubBackend(asyncio.Protocol):
    """Answers what a run asks, each time after `latency` seconds, and remembers the writes."""

    latency = 0.0
    written: ClassVar[set[str]] = set()
    writes = 0
    first_write = last_write = 0.0

    def connection_made(self, transport: Any) -> None:
        """A connection that is kept alive."""
        self._transport, self._buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answer each request that is complete."""
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            size = int(length[1]) if length else 0
            if len(rest) < size:
                return
            self._buffer = rest[size:]
            method, target, _ = head.split(b" ", 2)
            answer = json.dumps(self._answer(method.decode(), target.decode())).encode()
            response = (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (len(answer), answer)
            )
            if self.latency:
                asyncio.get_running_loop().call_later(self.latency, self._transport.write, response)
            else:
                self._transport.write(response)

    def _answer(self, method: str, target: str) -> Any:
        path, _, query = target.partition("?")
        parts = path.strip("/").split("/")
        match (method, parts[0], len(parts)):
            case ("PUT", "tasks", 3):
                self._write(parts[1])
                return {"id": int(parts[1])}
            case ("GET", "tasks", 2):
                return {"id": int(parts[1]), "data": None, "data_unit": {"id": 1, "files": FILES}}
            case ("POST", "plugins", _):
                return {"label": "cat", "score": 0.5}
            case ("GET", "sdk", _):
                return self._page(query)
            case ("GET", "jobs", _):
                return {"id": int(parts[1]), "status": "PENDING", "result": None}
            case ("PATCH", "jobs", _):
                return {"id": int(parts[1]), "status": "RUNNING"}
            case ("GET", "plugin_releases", _):
                return {
                    "id": 1,
                    "version": "1.0.0",
                    "config": {"code": "bench", "actions": {"inference": {}}},
                }
            case ("GET", "serve_applications", _):
                return {"count": 1, "next": None, "previous": None, "results": [APPLICATION]}
            case ("GET", "data_collections", _):
                return {"id": 1, "file_specifications": [{"name": "image"}, {"name": "data"}]}
            case ("POST", "stub", _):
                return self._reset(float(parts[1]))
            case ("GET", "stub", _):
                cls = StubBackend
                return [len(cls.written), cls.writes, cls.first_write, cls.last_write]
        return {"id": 1, "data_collection": 1}

    @staticmethod
    def _write(task: str) -> None:
        cls, now = StubBackend, time.time()
        cls.first_write = cls.first_write or now
        cls.last_write = now
        cls.writes += 1
        cls.written.add(task)

    @staticmethod
    def _page(query: str) -> dict[str, Any]:
        asked = dict(pair.partition("=")[::2] for pair in query.split("&"))
        count, size, page = int(asked["project"]), int(asked.get("page_size", 100)), int(asked.get("page", 1))
        ids = range((page - 1) * size + 1, min(page * size, count) + 1)
        following = re.sub(r"&?page=\d+", "", query) + f"&page={page + 1}" if page * size < count else None
        link = following and f"{ORIGIN}/sdk/tasks/?{following}"
        return {"count": count, "next": link, "previous": None, "results": [{"id": each} for each in ids]}

    @staticmethod
    def _reset(latency_ms: float) -> dict[str, Any]:
        cls = StubBackend
        cls.latency, cls.written, cls.writes, cls.first_write, cls.last_write = (
            latency_ms / 1e3,
            set(),
            0,
            0,
            0,
        )
        return {}


ORIGIN = ""


def serve_stub(port: int) -> None:
    """Serve until the process is ended."""
    global ORIGIN
    ORIGIN = f"http://127.0.0.1:{port}"

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(StubBackend, "127.0.0.1", port, backlog=512)
        await server.serve_forever()

    asyncio.run(serve())


# -- bare loop ---------------------------------------------------------------------------------------------


async def bare_loop(backend: str, method: str, tasks: int) -> None:
    """The same requests, and nothing else."""
    left = deque(range(1, tasks + 1))
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def call(verb: str, path: str, body: Any = None) -> Any:
            async with session.request(verb, f"{backend}/{path}", json=body) as response:
                return await response.json()

        async def work() -> None:
            while left:
                task = left.popleft()
                await call("GET", f"tasks/{task}/?fields=id,data,data_unit&expand=data_unit")
                answer = {"id": 1, "label": "cat"}
                if method == "inference":
                    params = {"method": "post", "json": {"text": "x"}}
                    body = {"agent": 1, "action": "inference", "params": params, "version": "1.0.0"}
                    answer = await call("POST", "plugins/bench/run/", body)
                data = {"action": "submit", "data": {"annotations": [answer]}}
                await call("PUT", f"tasks/{task}/annotate_task_data/", data)

        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))


# -- measuring ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """Of one run over all tasks: tasks a second, from publishing and from the first write; CPU a task."""

    from_publishing: float
    from_first_write: float
    cpu_ms: float


class Bench:
    """A Redis, the backend's stub and one worker."""

    def __init__(self, folder: Path, redis_url: str, backend: str) -> None:
        self._folder, self._redis_url, self._backend = folder, redis_url, backend
        self._jobs = iter(range(1, 1_000_000))

    @contextmanager
    def worker(self) -> Iterator[Process]:
        """A worker of all queues while the block runs."""
        env = clean_environment() | {
            "REDIS_URL": self._redis_url,
            "SYNAPSE_HOST": self._backend,
            "SYNAPSE_ACCESS_TOKEN": "bench",
            "PLUGINS_DIR": str(self._folder),
            "WORKER_PLUGIN_HOST": "process",
            "WORKER_ANNOTATE_CONCURRENCY": str(IN_FLIGHT),
        }
        celery = [
            str(Path(sys.executable).with_name("celery")),
            "-A",
            "worker",
            "worker",
            "--pool",
            "threads",
        ]
        celery += [
            "-c",
            "8",
            "-l",
            "INFO",
            "-n",
            "worker@bench",
            "-Q",
            "deploy,to_task,annotate,logs,control",
        ]
        log = self._folder / "worker.log"
        process = start_process("worker", celery, log=log, env=env, cwd=HERE.parent)
        try:
            process.wait_until(lambda: log.exists() and "ready" in log.read_text(), MAX_WAIT_SECONDS)
            yield process
        finally:
            process.stop()

    def measure_worker(self, worker: Process, method: str, latency_ms: int, tasks: int) -> Figures:
        """Publish one run and wait until all of its tasks are written."""
        self._run(method, WARM_UP, latency_ms)
        main = psutil.Process(worker.pid)  # without the plugin's processes
        before = _cpu_seconds(main)
        published = self._run(method, tasks, latency_ms)
        spent = _cpu_seconds(main) - before
        return self._figures(published, tasks, spent)

    def measure_bare(self, method: str, latency_ms: int, tasks: int) -> Figures:
        """The same requests in a bare loop of this process."""
        self._reset(latency_ms)
        own = psutil.Process()
        asyncio.run(bare_loop(self._backend, method, WARM_UP))
        self._reset(latency_ms)
        before, began = _cpu_seconds(own), time.time()
        asyncio.run(bare_loop(self._backend, method, tasks))
        return self._figures(began, tasks, _cpu_seconds(own) - before)

    def _run(self, method: str, tasks: int, latency_ms: int) -> float:
        self._reset(latency_ms)
        job = str(next(self._jobs))
        params: dict[str, Any] = {"name": "bench", "project": tasks, "agent": 1, "method": method}
        if method == "file":
            params |= {"target_specification_name": "data"}
        else:
            params |= {"pre_processor": 1, "model": 1, "batch_size": IN_FLIGHT}
        message = ToTaskMessage.model_validate({"job": job, "plugin": "bench@1.0.0", "params": params})
        with Publisher(self._redis_url) as publisher:
            published = time.time()
            publisher.publish(message)
        wait_for(lambda: self._stats()[0] == tasks, MAX_WAIT_SECONDS, "all writes")
        return published

    def _figures(self, began: float, tasks: int, cpu_seconds: float) -> Figures:
        _, writes, first, last = self._stats()
        if writes != tasks:
            print(f"({writes} writes for {tasks} tasks)")
        return Figures(tasks / (last - began), tasks / (last - first), cpu_seconds / tasks * 1e3)

    def _reset(self, latency_ms: int) -> None:
        httpx.post(f"{self._backend}/stub/{latency_ms}/", trust_env=False)

    def _stats(self) -> list[float]:
        found: list[float] = httpx.get(f"{self._backend}/stub/", trust_env=False).json()
        return found


def _cpu_seconds(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


def main() -> None:
    """Measure the bare loop and the worker, one after the other, in each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer tasks: about a minute")
    parser.add_argument("--tasks", type=int, help="so many tasks in place of the usual number")
    parser.add_argument("--only", help="one way alone, such as file-20")
    parser.add_argument("--stub", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stub:
        serve_stub(arguments.stub)
        return
    tasks = arguments.tasks or (QUICK if arguments.quick else FULL)
    with TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        release = folder / "bench@1.0.0"
        release.mkdir()
        (release / "config.yaml").write_text(CONFIG)
        (release / "plugin.py").write_text(CODE)
        server = RedisServer(folder / "redis")
        server.start()
        stub = start_process("stub", [sys.executable, __file__, "--stub", str(port)], log=folder / "stub.log")
        try:
            stub.wait_until(lambda: is_listening(port), MAX_WAIT_SECONDS)
            Redis.from_url(server.url).close()
            bench = Bench(folder, server.url, f"http://127.0.0.1:{port}")
            with bench.worker() as worker:
                for method in METHODS:
                    for latency_ms in LATENCIES_MS:
                        if arguments.only not in (None, f"{method}-{latency_ms}"):
                            continue
                        bare = bench.measure_bare(method, latency_ms, tasks)
                        ours = bench.measure_worker(worker, method, latency_ms, tasks)
                        report(f"by {method}, {latency_ms} ms", bare, ours)
        finally:
            stub.stop()
            server.stop()


def report(what: str, bare: Figures, ours: Figures) -> None:
    """Print the figures and the ratios."""
    print(
        f"{what}: bare {bare.from_first_write:.0f} tasks/s, worker {ours.from_first_write:.0f} from the first"
        f" write, {ours.from_publishing:.0f} from publishing:"
        f" {ours.from_first_write / bare.from_first_write:.2f} and"
        f" {ours.from_publishing / bare.from_publishing:.2f} of bare;"
        f" CPU a task: bare {bare.cpu_ms:.2f} ms, worker {ours.cpu_ms:.2f} ms"
    )


if __name__ == "__main__":
    main()
