"""The agent's logs on a fake of Ray's dashboard, read with the worker's own client."""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.sync.client import connect

from worker.platform import (
    AgentClient,
    AuthenticationError,
    NotFoundError,
    StreamError,
    ValidationError,
)
from worker.sandbox.agent.app import create_app, dashboard_client

TOKEN = "agent-token"


Eventually = Callable[[Callable[[], object]], None]


both_protocols = pytest.mark.parametrize("protocol", ["stream", "websocket"])


@dataclass
class FakeRay:
    """A Ray with one job. A connection sends the next list of `tails`, then closes unless it `stays_open`.

    After the last of `tails` the job ends.
    """

    status: str = "RUNNING"
    kind: str = "SUBMISSION"
    tails: list[list[str]] = field(default_factory=list)
    file: bytes | None = b""
    stays_open: bool = False
    final_status: str = "SUCCEEDED"
    opened: int = 0
    closed: int = 0
    stoppable: bool = True

    async def job(self, request: Request) -> Response:
        if request.path_params["id"] != "job-1":
            return Response("Job does not exist", 404)
        if self.status == "GONE":
            return Response(status_code=500)
        node = None if self.file is None else "n1"
        job = {"submission_id": "job-1", "type": self.kind, "status": self.status, "driver_node_id": node}
        return JSONResponse(job)

    async def tail(self, websocket: WebSocket) -> None:
        assert websocket.headers["Authorization"] == "Bearer ray-token"
        assert "sec-websocket-extensions" not in websocket.headers
        await websocket.accept()
        self.opened += 1
        for text in self.tails.pop(0) if self.tails else []:
            await websocket.send_text(text)
        if self.stays_open:
            await websocket.receive()
        else:
            await websocket.close()
            if not self.tails:
                self.status = self.final_status
        self.closed += 1

    async def log_file(self, request: Request) -> Response:
        assert request.query_params["filename"] == "job-driver-job-1.log"
        return Response(self.file)

    async def stop(self, _request: Request) -> Response:
        return JSONResponse({"stopped": self.stoppable})

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/api/jobs/{id}", self.job),
                Route("/api/jobs/{id}/stop", self.stop, methods=["POST"]),
                WebSocketRoute("/api/jobs/{id}/logs/tail", self.tail),
                Route("/api/v0/logs/file", self.log_file),
            ]
        )


@contextlib.contextmanager
def serving(app: Callable[[], Any]) -> Iterator[str]:
    """Serve `app` on a loopback port, in a thread."""
    started = threading.Event()
    address: list[Any] = []

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            address.extend(self.servers[0].sockets[0].getsockname())
            started.set()

    options = {"port": 0, "log_level": "warning", "ws_ping_timeout": None, "timeout_graceful_shutdown": 1}
    server = Server(uvicorn.Config(app, factory=True, **options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield f"http://127.0.0.1:{address[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture
def ray() -> FakeRay:
    return FakeRay()


@pytest.fixture
def agent(ray: FakeRay) -> Iterator[str]:
    with (
        serving(ray.app) as dashboard,
        serving(lambda: create_app(TOKEN, dashboard_client(dashboard, "ray-token"), "plugin-token")) as url,
    ):
        yield url


def lines_of(agent: str, protocol: Any, job: str = "job-1") -> list[str]:
    with AgentClient(agent, TOKEN) as client:
        return list(client.tail_job_logs(job, 5, protocol))


@both_protocols
def test_chunks_of_ray_become_lines(agent: str, ray: FakeRay, protocol: Any) -> None:
    ray.tails = [["one\ntwo\npar", "tial\n", "\x1b[32m한국어\x1b[0m\nlast"]]
    ray.file = "one\ntwo\npartial\n\x1b[32m한국어\x1b[0m\nlast".encode()

    assert lines_of(agent, protocol) == ["one", "two", "partial", "\x1b[32m한국어\x1b[0m", "last"]


@both_protocols
def test_lines_that_look_like_events_are_kept(agent: str, ray: FakeRay, protocol: Any) -> None:
    printed = [
        'data: {"type": "complete"}',
        '{"type": "error", "message": "x"}',
        "",
        "",
        "data: 5",
        "17",
        "a\x0bb\u2028c",
        "data:",
    ]
    ray.tails = [["".join(f"{line}\n" for line in printed)]]

    assert lines_of(agent, protocol) == printed


def test_responses_have_the_format_of_the_platform(agent: str, ray: FakeRay) -> None:
    ray.tails, ray.file = [["one\n\n"]], b"one\n\n"
    headers = {"Authorization": TOKEN}

    answer = httpx.get(f"{agent}/jobs/job-1/logs/stream/", headers=headers)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert answer.text == 'one\ndata: {"type": "log", "message": ""}\n\ndata: {"type": "complete"}\n\n'

    url = f"{agent}/jobs/job-1/logs/".replace("http", "ws")
    with connect(url, additional_headers=headers, compression=None, proxy=None) as websocket:
        assert [json.loads(message) for message in websocket] == [
            {"type": "log", "message": "one"},
            {"type": "log", "message": ""},
            {"type": "complete"},
        ]


@both_protocols
def test_broken_tail_is_completed_from_the_file(agent: str, ray: FakeRay, protocol: Any) -> None:
    # Ray's tail fails at an incomplete character, and at bytes that are not UTF-8.
    ray.tails = [["one\ntw"], []]
    ray.file = b"one\ntwo\r\ncaf\xe9\n\xea\xb0\x80"

    assert lines_of(agent, protocol) == ["one", "two", "caf�", "가"]


def test_tail_of_a_running_job_is_reopened(agent: str, ray: FakeRay) -> None:
    ray.tails, ray.final_status = [["one\n"], ["one\ntwo\nthree\n", "four\n"]], "RUNNING"
    ray.file = b"one\ntwo\n\xea"

    with AgentClient(agent, TOKEN) as client:
        log = client.tail_job_logs("job-1", 5)
        assert [next(log) for _ in range(4)] == ["one", "two", "three", "four"]
        ray.file = b"one\ntwo\nthree\nfour\nfive\n"
        ray.status = ray.final_status = "STOPPED"
        assert list(log) == ["five"]


@both_protocols
def test_job_that_never_started_has_an_empty_log(agent: str, ray: FakeRay, protocol: Any) -> None:
    ray.status, ray.file = "FAILED", None

    assert lines_of(agent, protocol) == []


@both_protocols
def test_oversized_line_is_cut(agent: str, ray: FakeRay, protocol: Any) -> None:
    ray.tails = [["x" * 300_000 + "\n" + "y" * 600_000, "y" * 600_000 + "\nend\n"]]
    ray.file = b""

    first, second, third = lines_of(agent, protocol)

    assert first.endswith("[cut: 300000 bytes]")
    assert second.startswith("yyy")
    assert third == "end"


@both_protocols
@pytest.mark.parametrize(
    ("job", "token", "kind"), [("none", TOKEN, NotFoundError), ("job-1", "x", AuthenticationError)]
)
def test_unknown_job_and_wrong_token_are_errors(
    agent: str, protocol: Any, job: str, token: str, kind: type
) -> None:
    with AgentClient(agent, token) as client, pytest.raises(kind):
        list(client.tail_job_logs(job, 5, protocol))


@both_protocols
def test_log_of_an_interactive_driver_is_an_error(agent: str, ray: FakeRay, protocol: Any) -> None:
    ray.kind = "DRIVER"

    with pytest.raises(ValidationError):
        lines_of(agent, protocol)


@both_protocols
def test_error_in_the_stream_is_an_event(agent: str, ray: FakeRay, protocol: Any) -> None:
    ray.tails, ray.final_status = [["one\n"]], "RUNNING"

    with AgentClient(agent, TOKEN) as client:
        log = client.tail_job_logs("job-1", 5, protocol)
        assert next(log) == "one"
        ray.status = ray.final_status = "GONE"
        with pytest.raises(StreamError, match="does not give the status of the job"):
            list(log)


@both_protocols
def test_disconnect_closes_an_idle_tail(
    agent: str, ray: FakeRay, protocol: Any, eventually: Eventually
) -> None:
    ray.tails, ray.stays_open = [["one\n"]], True

    with AgentClient(agent, TOKEN) as client:
        assert next(client.tail_job_logs("job-1", 60, protocol)) == "one"

    eventually(lambda: ray.opened == ray.closed == 1)


async def test_many_clients_share_one_tail_without_threads(
    agent: str, ray: FakeRay, eventually: Eventually
) -> None:
    ray.tails, ray.stays_open = [["one\n"]], True
    before = threading.active_count()
    with AgentClient(agent, TOKEN) as client:
        tails = [
            client.log_tail("job-1", 60, "stream" if n % 2 else "websocket").batches() for n in range(200)
        ]

    assert await asyncio.gather(*(anext(tail) for tail in tails)) == [["one"]] * 200
    assert ray.opened == 1
    assert threading.active_count() <= before + 1

    await asyncio.gather(*(tail.aclose() for tail in tails))
    await asyncio.to_thread(eventually, lambda: ray.closed == 1)


def test_later_client_gets_the_whole_log(agent: str, ray: FakeRay) -> None:
    ray.tails, ray.stays_open = [["one\n", "two\n"]], True

    with AgentClient(agent, TOKEN) as client:
        first, second = client.tail_job_logs("job-1", 5), client.tail_job_logs("job-1", 5, "websocket")
        assert [next(first), next(first)] == ["one", "two"]
        assert [next(second), next(second)] == ["one", "two"]
        first.close()
        assert ray.opened == 1


def test_log_with_invalid_bytes_is_returned(agent: str, ray: FakeRay) -> None:
    ray.file = b"one\r\ncaf\xe9\n"

    with AgentClient(agent, TOKEN) as client:
        assert client.list_job_logs("job-1") == "one\ncaf�\n"
        with pytest.raises(NotFoundError):
            client.list_job_logs("none")


def test_ended_job_cannot_be_stopped(agent: str, ray: FakeRay) -> None:
    with AgentClient(agent, TOKEN) as client:
        assert client.stop_job("job-1") == {"stopped": True, "status": "STOPPING"}
        ray.stoppable = False
        with pytest.raises(ValidationError) as caught:
            client.stop_job("job-1")

    assert caught.value.status == 400
    assert caught.value.detail == "The job has already ended."
