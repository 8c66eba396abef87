"""The agent on a fake of Ray's dashboard."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from worker.sandbox.agent.app import create_app

URL = "http://agent"


HEADERS = {"Authorization": "agent-token"}


class FakeRay:
    """One node of four CPUs; `used_cpus` is the reported usage, `actors` may be newer than it."""

    def __init__(self) -> None:
        self.used_cpus = 0.0
        self.actors: list[dict[str, Any]] = []
        self.applications: dict[str, Any] = {}
        self.is_up = True
        self.has_reported = True

    def answer(self, request: httpx.Request) -> httpx.Response:
        if not self.is_up:
            raise httpx.ConnectError("refused")
        if request.url.path == "/api/cluster_status":
            usage = (
                {"n1": {"CPU": [self.used_cpus, 4.0], "memory": [0.0, 1024.0]}} if self.has_reported else {}
            )
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
def ray() -> FakeRay:
    return FakeRay()


@pytest.fixture
async def agent(ray: FakeRay) -> AsyncIterator[httpx.AsyncClient]:
    dashboard = httpx.AsyncClient(transport=httpx.MockTransport(ray.answer), base_url="http://dashboard")
    transport = httpx.ASGITransport(app=create_app("agent-token", dashboard, "plugin-token"))
    async with (
        dashboard,
        httpx.AsyncClient(transport=transport, base_url="http://a", headers=HEADERS) as client,
    ):
        yield client


async def feasible(agent: httpx.AsyncClient, **wanted: object) -> int:
    answer = await agent.post("/resources/feasibility/", json={"kind": "serve", **wanted})
    return int(answer.json()["feasible_replicas"])


async def test_plugin_code_may_only_read(agent: httpx.AsyncClient, ray: FakeRay) -> None:
    headers = {"Authorization": "plugin-token"}
    ask = await agent.post("/resources/feasibility/", json={"kind": "serve"}, headers=headers)
    stop = await agent.post("/jobs/a/stop/", headers=headers)
    read = await agent.get("/serve_applications/", headers=headers)

    assert [each.status_code for each in (ask, stop, read)] == [200, 403, 200]


async def test_every_path_needs_the_token(agent: httpx.AsyncClient) -> None:
    assert (await agent.get("/health/")).json() == {"status": "ok"}
    for path in ("/health/", "/nowhere/"):
        assert (await agent.get(path, headers={"Authorization": "Token agent-token"})).status_code == 401
    assert (await agent.get("/nowhere/")).status_code == 404


async def test_actor_counts_before_the_usage_is_reported(agent: httpx.AsyncClient, ray: FakeRay) -> None:
    assert await feasible(agent, replicas=4) == 4
    ray.actors = [
        {"state": "ALIVE", "node_id": "n1", "required_resources": {"CPU": 1.0}},
        {"state": "ALIVE", "node_id": "n1", "required_resources": None},
        {"state": "DEAD", "node_id": "n1", "required_resources": {"CPU": 1.0}},
        {"state": "ALIVE", "node_id": "gone", "required_resources": {"CPU": 1.0}},
    ]
    assert await feasible(agent, replicas=4) == 3
    ray.used_cpus = 3.0
    assert await feasible(agent, replicas=4) == 1


async def test_replicas_to_be_started_count_against_the_policy(
    agent: httpx.AsyncClient, ray: FakeRay
) -> None:
    await agent.patch("/resources/policy/", json={"max_concurrent_serve_replicas": 3})
    assert await feasible(agent, num_cpus=0, replicas=3) == 3
    ray.applications = {"a": {"deployments": {"A": {"target_num_replicas": 2, "replicas": []}}}}
    assert await feasible(agent, num_cpus=0, replicas=3) == 1
    # The limit is for applications alone.
    body = {"kind": "job", "num_cpus": 0, "replicas": 3}
    assert (await agent.post("/resources/feasibility/", json=body)).json()["allowed"]


async def test_unavailable_ray_is_a_server_error(agent: httpx.AsyncClient, ray: FakeRay) -> None:
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
async def test_feasibility_rejects_an_invalid_body(
    agent: httpx.AsyncClient, body: object, answer: object
) -> None:
    given = await agent.post("/resources/feasibility/", json=body)
    assert (given.status_code, given.json()) == (400, answer)
