"""A real Ray, its agent, and an application that the backend calls."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator

import httpx
import psutil
import pytest

from worker.sandbox import Sandbox, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

APPLICATION = textwrap.dedent("""
    import ray
    from ray import serve
    from starlette.requests import Request

    @serve.deployment(ray_actor_options={"num_cpus": 1})
    class Echo:
        async def __call__(self, request: Request):
            return {"echo": await request.json(), "model": serve.get_multiplexed_model_id()}

    ray.init(log_to_driver=False)
    serve.run(Echo.bind(), name="echo@1.0.0", route_prefix="/echo")
""")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with Sandbox(plugins_dir=tmp_path_factory.mktemp("plugins"), num_cpus=3) as sandbox:
        yield sandbox
        assert sandbox.ray is not None
        assert sandbox.ray.process is not None
        pids = sandbox.ray.process.pids()
        assert len(pids) > 10
        assert sandbox.ray.temp_dir is not None
        assert sandbox.ray.temp_dir.is_dir()
        sandbox.stop()
        assert not sandbox.ray.temp_dir.exists()
        assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.fixture
def agent(sandbox: Sandbox) -> Iterator[httpx.Client]:
    headers = {"Authorization": sandbox.agent_token}
    with httpx.Client(base_url=sandbox.agent_url or "", headers=headers, timeout=60) as client:
        yield client


@pytest.fixture
def backend(sandbox: Sandbox) -> Iterator[httpx.Client]:
    headers = {"Synapse-Access-Token": f"Token {sandbox.access_token}"}
    with httpx.Client(base_url=sandbox.backend_url, headers=headers, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def application(sandbox: Sandbox) -> str:
    """Deploy a small application of one CPU; returns its name."""
    driver = [sys.executable, "-c", APPLICATION]
    subprocess.run(driver, env={**sandbox.environment()}, check=True, capture_output=True, timeout=90)
    return "echo@1.0.0"


@pytest.mark.parametrize("path", ["/health/", "/nodes/", "/resources/feasibility/", "/nowhere/"])
def test_wrong_token_is_rejected(agent: httpx.Client, path: str) -> None:
    for wrong in ("", "wrong", f"Bearer {agent.headers['Authorization']}"):
        assert agent.get(path, headers={"Authorization": wrong}).status_code == 401


def test_ray_dashboard_needs_the_token(sandbox: Sandbox) -> None:
    assert sandbox.ray is not None
    assert httpx.get(f"{sandbox.ray.dashboard_url}/api/version").status_code == 401


def test_health_nodes_and_jobs(agent: httpx.Client) -> None:
    assert agent.get("/health/").status_code == 200
    (node,) = agent.get("/nodes/").json()["results"]
    assert node["resources_total"]["CPU"] == 3
    assert agent.get(f"/nodes/{node['id']}/").json()["id"] == node["id"]
    assert agent.get("/nodes/none/").status_code == 404
    assert agent.get("/jobs/none/").status_code == 404
    assert agent.get("/jobs/").status_code == 200
    assert agent.get("/tasks/").status_code == 200
    cluster = agent.get("/resources/cluster/").json()
    assert cluster["node_counts"] == {"alive": 1}
    assert agent.get("/gpu_status/").json()["total_gpus"] == 0


@pytest.mark.parametrize(
    ("wanted", "allowed", "reasons"),
    [
        ({"num_cpus": 1, "replicas": 1}, True, []),
        ({"num_cpus": 64}, False, ["insufficient_cpu"]),
        ({"num_cpus": 2, "replicas": 2}, False, ["insufficient_cpu"]),
        ({"num_cpus": 1, "num_gpus": 1}, False, ["insufficient_gpu"]),
        ({"num_cpus": 1, "memory_bytes": 2**50}, False, ["insufficient_memory"]),
    ],
)
def test_feasibility_of_real_resources(
    agent: httpx.Client, wanted: dict[str, object], allowed: bool, reasons: list[str]
) -> None:
    body = {"kind": "serve", "metadata": {"plugin_code": "echo@1.0.0", "agent": 1}, **wanted}
    answer = agent.post("/resources/feasibility/", json=body).json()
    assert (answer["allowed"], answer["reasons"]) == (allowed, reasons)


def test_feasibility_rejects_an_invalid_body(agent: httpx.Client) -> None:
    url = "/resources/feasibility/"
    assert agent.post(url, json={"kind": "serve", "cpus": 1}).json() == {"cpus": ["unknown"]}
    assert agent.post(url, json={"kind": "serve", "num_cpus": "1"}).json() == {"num_cpus": ["wrong type"]}
    negative = agent.post(url, json={"kind": "serve", "num_cpus": -1, "replicas": 0})
    assert negative.status_code == 400
    assert negative.json().keys() == {"num_cpus", "replicas"}


def test_policy_limits_replicas(agent: httpx.Client) -> None:
    assert agent.patch("/resources/policy/", json={"x": 1}).json() == {"x": ["unknown"]}
    limit = {"max_concurrent_serve_replicas": 1}
    assert agent.patch("/resources/policy/", json=limit).json().items() >= limit.items()
    answer = agent.post(
        "/resources/feasibility/", json={"kind": "serve", "num_cpus": 0.1, "replicas": 2}
    ).json()
    assert answer["reasons"] == ["max_concurrent_serve_replicas_exceeded"]
    agent.patch("/resources/policy/", json={"max_concurrent_serve_replicas": None})
    assert agent.get("/resources/policy/").json()["max_concurrent_serve_replicas"] is None


def test_application_is_called_and_deleted(
    sandbox: Sandbox, agent: httpx.Client, backend: httpx.Client, application: str
) -> None:
    # The resources of the application are in use at once.
    body = {"kind": "serve", "num_cpus": 3}
    assert agent.post("/resources/feasibility/", json=body).json()["reasons"] == ["insufficient_cpu"]
    assert agent.get(f"/serve_applications/{application}/").json()["status"] == "RUNNING"

    job = sandbox.state.add_job(action="deployment", plugin=application, agent=1)
    created = backend.post("/serve_applications/", json={"job": job}).json()
    assert created["status"] == "RUNNING"
    run = {"agent": 1, "action": "inference", "params": {"model": 3, "json": {"a": 1}}}
    answer = backend.post("/plugins/echo/run/", json=run)
    assert (answer.status_code, answer.json()) == (200, {"echo": {"a": 1}, "model": "3"})

    assert agent.delete(f"/serve_applications/{application}/").status_code == 204
    assert agent.get(f"/serve_applications/{application}/").status_code == 404

    def unavailable() -> bool:
        records = backend.get("/serve_applications/", params={"plugin_code": "echo"}).json()["results"]
        return [record["status"] for record in records] == ["UNAVAILABLE"]

    wait_for(unavailable, 10, "the record to become UNAVAILABLE")
    assert backend.post("/plugins/echo/run/", json=run).status_code == 503


def test_ray_job_is_read_and_stopped(sandbox: Sandbox, agent: httpx.Client) -> None:
    assert sandbox.ray is not None
    headers = {"Authorization": f"Bearer {sandbox.ray.token}"}
    submission = {"entrypoint": "echo hello from the job; sleep 1000"}
    submitted = httpx.post(
        f"{sandbox.ray.dashboard_url}/api/jobs/", json=submission, headers=headers, timeout=60
    )
    job = submitted.json()["submission_id"]
    wait_for(lambda: "hello from the job" in agent.get(f"/jobs/{job}/logs/").text, 60, "the line")
    assert agent.get(f"/jobs/{job}/").json()["id"] == job
    assert agent.post(f"/jobs/{job}/stop/").json() == {"stopped": True}
    wait_for(lambda: agent.get(f"/jobs/{job}/").json()["status"] == "STOPPED", 30, "the stop")


def test_restarted_services_keep_their_ports(
    sandbox: Sandbox, agent: httpx.Client, backend: httpx.Client
) -> None:
    assert sandbox.agent is not None
    sandbox.agent.restart()
    sandbox.backend.restart()
    assert agent.get("/health/").status_code == 200
    assert backend.get("/agents/").json()["count"] == 1
