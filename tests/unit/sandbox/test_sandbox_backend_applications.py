"""Application records follow the agent; runs are dispatched and inferences passed on."""

import asyncio
import hashlib
import json
from typing import Any

import httpx
import pytest

from shared import DeployMessage
from worker.sandbox.backend.state import State

NAME = "digits@1.10.0"


@pytest.fixture
def job(state: State) -> int:
    """The job that deployed the application."""
    return int(state.add_job(action="deployment", plugin=NAME, agent=1))


def listed(name: str = NAME, status: str = "RUNNING", route: str | None = "/abc") -> dict[str, object]:
    return {"name": name, "status": status, "route_prefix": route}


async def statuses(backend: httpx.AsyncClient, **query: object) -> list[str]:
    await asyncio.sleep(0.06)  # The backend takes what it heard within the last 50 ms for current.
    results = (await backend.get("/serve_applications/", params=query)).json()["results"]
    return [record["status"] for record in results]


async def test_a_record_follows_the_agent(backend: httpx.AsyncClient, outside: Any, job: int) -> None:
    created = await backend.post("/serve_applications/", json={"job": job})
    assert created.status_code == 201
    assert created.json()["status"] == "DEPLOYING"
    assert await statuses(backend) == ["DEPLOYING"]
    outside.applications = [listed()]
    assert await statuses(backend) == ["RUNNING"]
    outside.agent_is_up = False
    outside.applications = []
    assert await statuses(backend) == ["RUNNING"]
    outside.agent_is_up = True
    assert await statuses(backend) == ["UNAVAILABLE"]
    outside.applications = [listed(status="UNHEALTHY")]
    assert await statuses(backend) == ["UNHEALTHY"]


async def test_a_record_is_current_at_once(backend: httpx.AsyncClient, outside: Any, job: int) -> None:
    outside.applications = [listed()]
    assert (await backend.post("/serve_applications/", json={"job": job})).json()["status"] == "RUNNING"


async def test_two_posts_make_two_records(backend: httpx.AsyncClient, job: int) -> None:
    body = {"job": str(job), "status": "RUNNING", "data": {"replicas": 1}}
    first = (await backend.post("/serve_applications/", json=body)).json()
    second = (await backend.post("/serve_applications/", json=body)).json()
    assert first["id"] != second["id"]
    assert first.keys() == {"id", "status", "data", "job"}


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"job": 1, "name": "x"}, {"name": ["unknown"]}),
        ({"status": "RUNNING"}, {"job": ["required"]}),
        ({"job": 1, "status": "UP"}, {"status": ['"UP" is not a valid choice.']}),
        ({"job": 99}, {"job": ['Invalid pk "99" - object does not exist.']}),
        ({"job": True}, {"job": ["wrong type"]}),
    ],
)
async def test_creating_is_strict(backend: httpx.AsyncClient, job: int, body: object, answer: object) -> None:
    given = await backend.post("/serve_applications/", json=body)
    assert (given.status_code, given.json()) == (400, answer)


async def test_filters(backend: httpx.AsyncClient, state: State, job: int) -> None:
    other = state.add_job(plugin="other@1", agent=2)
    for owner, status in ((job, "RUNNING"), (other, "UNHEALTHY")):
        await backend.post("/serve_applications/", json={"job": owner, "status": status})
    assert await statuses(backend) == ["RUNNING", "UNHEALTHY"]
    assert await statuses(backend, plugin_code="digits", job__agent=1) == ["RUNNING"]
    assert await statuses(backend, plugin_code=NAME) == ["RUNNING"]
    assert await statuses(backend, plugin_code="digit") == []
    assert await statuses(backend, job__agent=2) == ["UNHEALTHY"]
    assert await statuses(backend, job=other) == ["UNHEALTHY"]


async def test_an_application_of_a_job_without_plugin_is_found_by_its_name(
    backend: httpx.AsyncClient, state: State
) -> None:
    made_by_hand = state.add_job(agent=1)
    body = {"job": made_by_hand, "status": "RUNNING", "data": {"name": NAME}}
    await backend.post("/serve_applications/", json=body)

    assert await statuses(backend, plugin_code="digits", job__agent=1) == ["RUNNING"]
    assert await statuses(backend, plugin_code="other") == []
    # And inferences reach it
    inference = {"agent": 1, "action": "inference", "params": {}, "version": "1.10.0"}
    assert (await backend.post("/plugins/digits/run/", json=inference)).json() == {"digit": 7}


async def test_a_deployment_is_a_job_and_a_message(
    backend: httpx.AsyncClient, state: State, outside: Any
) -> None:
    body = {"agent": 1, "action": "deployment", "params": {"num_cpus": 1, "num_gpus": 0.1}, "job_id": 7}
    answer = await backend.post("/plugins/digits/run/", json=body)
    assert answer.status_code == 201
    created = state.job(answer.json()["id"])
    assert created is not None
    assert (created["status"], created["plugin"], created["parent"]) == ("PENDING", NAME, 7)
    (message,) = outside.published
    assert isinstance(message, DeployMessage)
    assert (message.job, message.plugin, message.agent) == (str(created["id"]), NAME, 1)
    assert message.params.num_gpus == 0.1


async def test_a_deployment_of_another_version(backend: httpx.AsyncClient, outside: Any) -> None:
    body = {"agent": 1, "action": "deployment", "params": {}, "version": "1.9.0"}
    await backend.post("/plugins/digits/run/", json=body)
    (message,) = outside.published
    assert isinstance(message, DeployMessage)
    assert message.plugin == "digits@1.9.0"


@pytest.mark.parametrize(
    ("path", "changes", "status", "answer"),
    [
        ("digits", {"name": "x"}, 400, {"name": ["unknown"]}),
        ("digits", {"version": None}, 400, {"version": ["wrong type"]}),
        ("digits", {"agent": 5}, 400, {"agent": ['Invalid pk "5" - object does not exist.']}),
        ("digits", {"action": "train"}, 400, {"action": ["must be deployment or inference"]}),
        ("nobody", {}, 404, {"detail": "No PluginRelease matches the given query."}),
    ],
)
async def test_a_run_is_strict(
    backend: httpx.AsyncClient,
    state: State,
    outside: Any,
    path: str,
    changes: dict[str, object],
    status: int,
    answer: object,
) -> None:
    body = {"agent": 1, "action": "deployment", "params": {}, **changes}
    given = await backend.post(f"/plugins/{path}/run/", json=body)
    assert (given.status_code, given.json()) == (status, answer)
    assert outside.published == []
    assert state.value("SELECT count(*) FROM jobs") == 0


async def test_params_that_no_deployment_takes(backend: httpx.AsyncClient, state: State) -> None:
    body = {"agent": 1, "action": "deployment", "params": {"num_cpus": -1}}
    given = await backend.post("/plugins/digits/run/", json=body)
    assert given.status_code == 400
    assert given.json().keys() == {"num_cpus"}
    assert state.value("SELECT count(*) FROM jobs") == 0


async def test_an_inference_is_passed_on(backend: httpx.AsyncClient, outside: Any, job: int) -> None:
    outside.applications = [listed()]
    await backend.post("/serve_applications/", json={"job": job})
    params = {"model": 5, "json": {"image": "url"}}
    body = {"agent": 1, "action": "inference", "params": params, "version": "1.10.0"}
    answer = await backend.post("/plugins/digits/run/", json=body)
    assert (answer.status_code, answer.json()) == (200, {"digit": 7})
    (call,) = outside.calls
    assert (call.method, str(call.url)) == ("POST", "http://serve/abc/")
    assert call.headers["serve_multiplexed_model_id"] == "5"
    assert json.loads(call.content) == {"image": "url"}


@pytest.mark.parametrize(
    ("data", "route"),
    [
        ({"route_prefix": "/mine"}, "/mine/"),
        (None, f"/{hashlib.md5(NAME.encode()).hexdigest()}/"),
    ],
)
async def test_where_an_application_is_served(
    backend: httpx.AsyncClient, outside: Any, job: int, data: object, route: str
) -> None:
    await backend.post("/serve_applications/", json={"job": job, "status": "RUNNING", "data": data})
    await backend.post(
        "/plugins/digits/run/", json={"agent": 1, "action": "inference", "params": {"method": "get"}}
    )
    (call,) = outside.calls
    assert (call.method, call.url.path) == ("GET", route)
    assert "serve_multiplexed_model_id" not in call.headers


async def test_an_inference_that_fails(backend: httpx.AsyncClient, outside: Any, job: int) -> None:
    body = {"agent": 1, "action": "inference", "params": {}}
    assert (await backend.post("/plugins/digits/run/", json=body)).status_code == 404
    await backend.post("/serve_applications/", json={"job": job})
    assert (await backend.post("/plugins/digits/run/", json=body)).status_code == 503
    outside.applications = [listed()]
    assert await statuses(backend) == ["RUNNING"]
    outside.inference = httpx.Response(422, text="no image")
    answer = await backend.post("/plugins/digits/run/", json=body)
    assert (answer.status_code, answer.json()) == (422, {"detail": "no image"})
    assert (await backend.post("/plugins/digits/run/", json={**body, "version": "1.9.0"})).status_code == 404
