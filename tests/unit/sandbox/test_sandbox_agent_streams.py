"""The agent's streams over a dashboard that the test speaks for, with the worker's own client."""

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

both = pytest.mark.parametrize("protocol", ["stream", "websocket"])


@dataclass
class Ray:
    """One job. A tail sends the next list of `tails`, then closes like Ray's, or stays open where `stays`.

    After the last tail the job ends.
    """

    status: str = "RUNNING"
    kind: str = "SUBMISSION"
    tails: list[list[str]] = field(default_factory=list)
    file: bytes | None = b""
    stays: bool = False
    ends_as: str = "SUCCEEDED"
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
        if self.stays:
            await websocket.receive()
        else:
            await websocket.close()
            if not self.tails:
                self.status = self.ends_as
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
    """`app` on a port of the loopback, in a thread."""
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
def ray() -> Ray:
    return Ray()


@pytest.fixture
def agent(ray: Ray) -> Iterator[str]:
    with (
        serving(ray.app) as dashboard,
        serving(lambda: create_app(TOKEN, dashboard_client(dashboard, "ray-token"))) as url,
    ):
        yield url


def lines_of(agent: str, protocol: Any, job: str = "job-1") -> list[str]:
    with AgentClient(agent, TOKEN) as client:
        return list(client.tail_job_logs(job, 5, protocol))


@both
def test_ray_s_pieces_become_lines(agent: str, ray: Ray, protocol: Any) -> None:
    ray.tails = [["one\ntwo\npar", "tial\n", "\x1b[32m한국어\x1b[0m\nlast"]]
    ray.file = "one\ntwo\npartial\n\x1b[32m한국어\x1b[0m\nlast".encode()

    assert lines_of(agent, protocol) == ["one", "two", "partial", "\x1b[32m한국어\x1b[0m", "last"]


@both
def test_what_looks_like_something_else_comes_as_it_was_printed(agent: str, ray: Ray, protocol: Any) -> None:
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


def test_the_wire_is_what_the_platform_s_table_says(agent: str, ray: Ray) -> None:
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


@both
def test_a_tail_that_breaks_off_is_caught_up_with(agent: str, ray: Ray, protocol: Any) -> None:
    # Ray's tail gives up at half a character, or at bytes that are no UTF-8.
    ray.tails = [["one\ntw"], []]
    ray.file = b"one\ntwo\r\ncaf\xe9\n\xea\xb0\x80"

    assert lines_of(agent, protocol) == ["one", "two", "caf�", "가"]


def test_while_a_job_runs_its_tail_is_taken_up_again(agent: str, ray: Ray) -> None:
    ray.tails, ray.ends_as = [["one\n"], ["one\ntwo\nthree\n", "four\n"]], "RUNNING"
    ray.file = b"one\ntwo\n\xea"

    with AgentClient(agent, TOKEN) as client:
        log = client.tail_job_logs("job-1", 5)
        assert [next(log) for _ in range(4)] == ["one", "two", "three", "four"]
        ray.file = b"one\ntwo\nthree\nfour\nfive\n"
        ray.status = ray.ends_as = "STOPPED"
        assert list(log) == ["five"]


@both
def test_a_job_that_never_printed_has_an_empty_log(agent: str, ray: Ray, protocol: Any) -> None:
    ray.status, ray.file = "FAILED", None

    assert lines_of(agent, protocol) == []


@both
def test_a_line_without_measure_is_cut(agent: str, ray: Ray, protocol: Any) -> None:
    ray.tails = [["x" * 300_000 + "\n" + "y" * 600_000, "y" * 600_000 + "\nend\n"]]
    ray.file = b""

    first, second, third = lines_of(agent, protocol)

    assert first.endswith("[cut: 300000 bytes]")
    assert second.startswith("yyy")
    assert third == "end"


@both
@pytest.mark.parametrize(
    ("job", "token", "kind"), [("none", TOKEN, NotFoundError), ("job-1", "x", AuthenticationError)]
)
def test_an_unknown_job_and_a_wrong_token(
    agent: str, protocol: Any, job: str, token: str, kind: type
) -> None:
    with AgentClient(agent, token) as client, pytest.raises(kind):
        list(client.tail_job_logs(job, 5, protocol))


@both
def test_a_driver_s_own_log_is_not_to_be_had(agent: str, ray: Ray, protocol: Any) -> None:
    ray.kind = "DRIVER"

    with pytest.raises(ValidationError):
        lines_of(agent, protocol)


@both
def test_an_error_on_the_way_is_an_event(agent: str, ray: Ray, protocol: Any) -> None:
    ray.tails, ray.ends_as = [["one\n"]], "RUNNING"

    with AgentClient(agent, TOKEN) as client:
        log = client.tail_job_logs("job-1", 5, protocol)
        assert next(log) == "one"
        ray.status = ray.ends_as = "GONE"
        with pytest.raises(StreamError, match="does not give the status of the job"):
            list(log)


@both
def test_whoever_leaves_frees_ray_even_while_nothing_comes(
    agent: str, ray: Ray, protocol: Any, eventually: Eventually
) -> None:
    ray.tails, ray.stays = [["one\n"]], True

    with AgentClient(agent, TOKEN) as client:
        assert next(client.tail_job_logs("job-1", 60, protocol)) == "one"

    eventually(lambda: ray.opened == ray.closed == 1)


async def test_many_followers_cost_ray_one_and_the_agent_no_thread(
    agent: str, ray: Ray, eventually: Eventually
) -> None:
    ray.tails, ray.stays = [["one\n"]], True
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


def test_who_comes_later_gets_all_of_it(agent: str, ray: Ray) -> None:
    ray.tails, ray.stays = [["one\n", "two\n"]], True

    with AgentClient(agent, TOKEN) as client:
        first, second = client.tail_job_logs("job-1", 5), client.tail_job_logs("job-1", 5, "websocket")
        assert [next(first), next(first)] == ["one", "two"]
        assert [next(second), next(second)] == ["one", "two"]
        first.close()
        assert ray.opened == 1


def test_a_whole_log_is_given_whatever_its_bytes(agent: str, ray: Ray) -> None:
    ray.file = b"one\r\ncaf\xe9\n"

    with AgentClient(agent, TOKEN) as client:
        assert client.list_job_logs("job-1") == "one\ncaf�\n"
        with pytest.raises(NotFoundError):
            client.list_job_logs("none")


def test_a_job_that_has_ended_cannot_be_stopped(agent: str, ray: Ray) -> None:
    with AgentClient(agent, TOKEN) as client:
        assert client.stop_job("job-1") == {"stopped": True, "status": "STOPPING"}
        ray.stoppable = False
        with pytest.raises(ValidationError) as caught:
            client.stop_job("job-1")

    assert caught.value.status == 400
    assert caught.value.detail == "The job has already ended."
