"""The end of a Ray job's log, from a dashboard and a node's agent over real HTTP."""

import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from worker.plugins.ray_driver import job_logs, jobs

GB = 1024**3
MB = 1024**2
END = b"\nresult\n"


class Head(BaseHTTPRequestHandler):
    """Answers as Ray's dashboard and the agent of the job's node do, of which it is both."""

    sent = 0

    def __init__(self, log: Path, *arguments: object) -> None:
        self.log = log
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        if self.path == "/api/jobs/job-1":
            began = self.log.parent.joinpath("began").exists()
            address = f'"http://127.0.0.1:{self.server.server_address[1]}"' if began else "null"
            self._answer(200, f'{{"driver_agent_http_address": {address}}}'.encode())
        elif self.path == "/logs/job-driver-job-1.log" and self.log.exists():
            self._answer_log()
        elif self.path == "/api/jobs/job-1/logs":
            self._answer_log(whole=True)
        else:
            self._answer(404, b"")

    def _answer_log(self, whole: bool = False) -> None:
        size = self.log.stat().st_size
        asked = None if whole else self.headers["Range"]
        if size == 0 and asked:
            self._answer(416, b"")
            return
        start = max(0, size - int(asked.removeprefix("bytes=-"))) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        with self.log.open("rb") as file:
            file.seek(start)
            while chunk := file.read(MB):
                type(self).sent += len(chunk)  # before the reader may have it
                self.wfile.write(chunk)

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The job's log on a node that is the head; Ray itself is asked for no more than the addresses."""
    path = tmp_path / "job.log"
    tmp_path.joinpath("began").touch()
    monkeypatch.setattr(Head, "sent", 0)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Head, path)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}".encode()
        node = {"Alive": True, "NodeID": "head", "Resources": {jobs.HEAD_RESOURCE: 1.0}}
        context = SimpleNamespace(get_node_id=lambda: "head")
        monkeypatch.setattr("ray.nodes", lambda: [node])
        monkeypatch.setattr("ray.get_runtime_context", lambda: context)
        monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_get", lambda *_, **__: address)
        yield path
        server.shutdown()


def test_of_a_log_of_gigabytes_only_the_end_is_sent(log: Path) -> None:
    # Given a log of 8 GB (sparse, so that it takes no room)
    with log.open("wb") as file:
        os.ftruncate(file.fileno(), 8 * GB)
        file.seek(0, os.SEEK_END)
        file.write(END)

    # When its end is read, then no more than that has travelled
    assert job_logs.end_of_log("job-1", MB, 10).endswith(END.decode())
    assert Head.sent == MB


def test_a_log_shorter_than_its_window_is_read_whole(log: Path) -> None:
    log.write_bytes("한글".encode() + END)

    assert job_logs.end_of_log("job-1", MB, 10) == "한글\nresult\n"


@pytest.mark.parametrize("content", [None, b""])
def test_a_job_that_has_printed_nothing_has_no_log(log: Path, content: bytes | None) -> None:
    if content is not None:
        log.write_bytes(content)

    assert job_logs.end_of_log("job-1", MB, 10) == ""


def test_a_job_that_never_began_has_no_log(log: Path) -> None:
    log.with_name("began").unlink()

    assert job_logs.end_of_log("job-1", MB, 10) == ""
