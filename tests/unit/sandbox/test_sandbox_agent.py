"""The agent over a dashboard that the test speaks for."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from worker.sandbox.agent.app import create_app

URL = "http://agent"
HEADERS = {"Authorization": "agent-token"}


class Ray:
    """One node of four CPUs; `booked` is what Ray's books say, `actors` what has just been placed."""

    def __init__(self) -> None:
        self.booked = 0.0
        self.actors: list[dict[str, Any]] = []
        self.applications: dict[str, Any] = {}
        self.is_up = True
        self.has_reported = True

    def answer(self, request: httpx.Request) -> httpx.Response:
        if not self.is_up:
            raise httpx.ConnectError("refused")
        if request.url.path == "/api/cluster_status":
            usage = {"n1": {"CPU": [self.booked, 4.0], "memory": [0.0, 1024.0]}} if self.has_reported else {}
            status = {"loadMetricsReport": {"usageByNode": usage}}
            return httpx.Response(200, json={"data": {"clusterStatus": status}})
        if request.url.path == "/api/v0/actors":
            return httpx.Response(200, json={"data": {"result": {"result": self.actors}}})
        if request.url.path == "/api/serve/applications/":
            return httpx.Response(200, json={"applications": self.applications})
        if request.url.path == "/api/version":
            return httpx.Response(200, json={})
        return httpx.Response(404 if request.url.path == "/api/jobs/none" else 500)


@pytest.fixture
def ray() -> Ray:
    return Ray()


@pytest.fixture
async def agent(ray: Ray) -> AsyncIterator[httpx.AsyncClient]:
    dashboard = httpx.AsyncClient(transport=httpx.MockTransport(ray.answer), base_url="http://dashboard")
    transport = httpx.ASGITransport(app=create_app("agent-token", dashboard))
    async with (
        dashboard,
        httpx.AsyncClient(transport=transport, base_url="http://a", headers=HEADERS) as client,
    ):
        yield client


async def feasible(agent: httpx.AsyncClient, **wanted: object) -> int:
    answer = await agent.post("/resources/feasibility/", json={"kind": "serve", **wanted})
    return int(answer.json()["feasible_replicas"])


async def test_only_the_token_opens(agent: httpx.AsyncClient) -> None:
    assert (await agent.get("/health/")).json() == {"status": "ok"}
    for path in ("/health/", "/nowhere/"):
        assert (await agent.get(path, headers={"Authorization": "Token agent-token"})).status_code == 401
    assert (await agent.get("/nowhere/")).status_code == 404


async def test_an_actor_counts_before_the_books_know_it(agent: httpx.AsyncClient, ray: Ray) -> None:
    assert await feasible(agent, replicas=4) == 4
    ray.actors = [
        {"state": "ALIVE", "node_id": "n1", "required_resources": {"CPU": 1.0}},
        {"state": "ALIVE", "node_id": "n1", "required_resources": None},
        {"state": "DEAD", "node_id": "n1", "required_resources": {"CPU": 1.0}},
        {"state": "ALIVE", "node_id": "gone", "required_resources": {"CPU": 1.0}},
    ]
    assert await feasible(agent, replicas=4) == 3
    ray.booked = 3.0
    assert await feasible(agent, replicas=4) == 1


async def test_replicas_that_are_not_there_yet_count_against_the_policy(
    agent: httpx.AsyncClient, ray: Ray
) -> None:
    await agent.patch("/resources/policy/", json={"max_concurrent_serve_replicas": 3})
    assert await feasible(agent, num_cpus=0, replicas=3) == 3
    ray.applications = {"a": {"deployments": {"A": {"target_num_replicas": 2, "replicas": []}}}}
    assert await feasible(agent, num_cpus=0, replicas=3) == 1
    # Only applications are limited so.
    body = {"kind": "job", "num_cpus": 0, "replicas": 3}
    assert (await agent.post("/resources/feasibility/", json=body)).json()["allowed"]


async def test_a_ray_that_cannot_say_is_no_refusal(agent: httpx.AsyncClient, ray: Ray) -> None:
    ray.has_reported = False
    assert (await agent.post("/resources/feasibility/", json={"kind": "serve"})).status_code == 503
    ray.is_up = False
    assert (await agent.get("/health/")).status_code == 503
    ray.is_up = True
    assert (await agent.get("/jobs/none/")).status_code == 404
    assert (await agent.get("/jobs/broken/")).status_code == 502


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({}, {"kind": ["required"]}),
        ({"kind": "serve", "gpus": 1}, {"gpus": ["unknown"]}),
        ({"kind": "serve", "replicas": 1.5}, {"replicas": ["wrong type"]}),
        ({"kind": "serve", "num_cpus": True}, {"num_cpus": ["wrong type"]}),
        ({"kind": "model"}, {"kind": ["must be one of serve, job, task"]}),
        ({"kind": "serve", "replicas": 0}, {"replicas": ["must be at least 1"]}),
        ({"kind": "serve", "memory_bytes": -1}, {"memory_bytes": ["must not be negative"]}),
    ],
)
async def test_feasibility_refuses_what_it_does_not_know(
    agent: httpx.AsyncClient, body: object, answer: object
) -> None:
    given = await agent.post("/resources/feasibility/", json=body)
    assert (given.status_code, given.json()) == (400, answer)
