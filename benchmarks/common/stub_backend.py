"""The backend of the benchmarks: it answers what runs ask, counts, and is a light process of its own."""

import asyncio
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from worker.sandbox.processes import free_port, is_listening, start_process

MAX_START_SECONDS = 60
PLUGIN = "walk@1.0.0"
CONFIG = "code: walk\nversion: 1.0.0\nactions:\n  to_task: {entrypoint: plugin.ToTask}\n"
CODE = """
from worker.actions import ToTaskAction

class ToTask(ToTaskAction):
    def convert_data_from_file(self, *arguments, **named):
        return {"seen": True}

    def prepare_inference_params(self, *arguments, **named):
        return {"method": "post", "json": {"text": "x"}}

    def convert_data_from_inference(self, inference_data, task_data=None):
        return {"seen": True}
"""
PRE_PROCESSOR_ACTIONS = {
    "inference": {"required_resources": {"required_cpu_count": 1, "required_gpu_count": 0}}
}
FILES = {
    name: {"url": f"http://127.0.0.1/{name}", "is_primary": name == "image_1", "file_name_original": name}
    for name in ("image_1", "label_1")
}
SPECIFICATION = "label_1"


class StubBackend(asyncio.Protocol):
    """One connection. A project has a task less than its id says.

    Pre-processors run once `POST ready/` has come. After `POST latency/20/` each answer takes 20 ms, and the
    writes are counted anew; `GET writes/` answers them, and `GET counts/` all requests.
    """

    counts: ClassVar[Counter[str]] = Counter()
    ready: ClassVar[bool] = False
    latency: ClassVar[float] = 0.0
    write_times: ClassVar[list[float]] = []
    written: ClassVar[set[str]] = set()
    url: ClassVar[str] = ""

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
            method, path, _ = head.split(b" ", 2)
            url = urlsplit(path.decode())
            answer = json.dumps(self._answer(method.decode(), url.path, dict(parse_qsl(url.query)))).encode()
            head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            response = head % len(answer) + answer
            if self.latency:
                asyncio.get_running_loop().call_later(self.latency, self._transport.write, response)
            else:
                self._transport.write(response)

    def _answer(self, method: str, path: str, query: dict[str, str]) -> Any:
        name, number = path.split("/")[1:3]
        kind = f"{method} {name}"
        if kind == "GET counts":
            return dict(self.counts)
        if kind == "GET writes":
            times = self.write_times or [0.0]
            return {
                "tasks": len(self.written),
                "writes": len(self.write_times),
                "span": [times[0], times[-1]],
            }
        self.counts[kind] += 1
        match kind:
            case "GET jobs":
                dispatched = path == "/jobs/dispatched/"
                return {"id": 1, "status": "RUNNING" if dispatched else "PENDING", "result": None}
            case "PATCH jobs":
                return {"id": 1, "status": "RUNNING"}
            case "GET plugin_releases":
                config = {"code": f"walk{number}", "actions": PRE_PROCESSOR_ACTIONS}
                return {"id": int(number), "version": "1.0.0", "config": config}
            case "GET serve_applications":
                records = [{"id": 1, "status": "RUNNING", "data": {}, "job": None}] if self.ready else []
                return {"count": len(records), "next": None, "previous": None, "results": records}
            case "POST plugins":  # a dispatch, or an inference
                return {"id": "dispatched"}
            case "POST ready":
                StubBackend.ready = True
            case "POST latency":
                StubBackend.latency = float(number) / 1e3
                self.write_times.clear()
                self.written.clear()
            case "GET data_collections":
                return {"id": 1, "file_specifications": [{"name": name} for name in FILES]}
            case "GET sdk":
                return self._tasks(int(query["project"]) - 1, query)
            case "GET tasks":
                return {"id": int(number), "data": {}, "data_unit": {"id": 1, "files": FILES}}
            case "PUT tasks":
                self.write_times.append(time.time())
                self.written.add(number)
        return {"id": 1, "data_collection": 1}

    def _tasks(self, count: int, query: dict[str, str]) -> dict[str, Any]:
        page, size = int(query.get("page", "1")), int(query["page_size"])
        ids = range((page - 1) * size + 1, min(page * size, count) + 1)
        query = query | {"page": str(page + 1)}
        following = f"{self.url}/sdk/tasks/?{urlencode(query)}" if page * size < count else None
        results = [{"id": each} for each in ids]
        return {"count": count, "next": following, "previous": None, "results": results}


def serve(port: int) -> None:
    """Serve until the process is ended."""
    StubBackend.url = f"http://127.0.0.1:{port}"

    async def serve_forever() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(StubBackend, "127.0.0.1", port, backlog=512)
        await server.serve_forever()

    asyncio.run(serve_forever())


@contextmanager
def stub_backend(folder: Path) -> Iterator[str]:
    """Run it until the block ends; yields its URL. The release `PLUGIN` is in `folder` then."""
    release, port = folder / PLUGIN, free_port()
    release.mkdir()
    (release / "config.yaml").write_text(CONFIG)
    (release / "plugin.py").write_text(CODE)
    stub = start_process("stub", [sys.executable, __file__, str(port)], log=folder / "stub.log")
    try:
        stub.wait_until(lambda: is_listening(port), MAX_START_SECONDS)
        yield f"http://127.0.0.1:{port}"
    finally:
        stub.stop()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
