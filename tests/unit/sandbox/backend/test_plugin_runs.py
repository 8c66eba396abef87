"""Deployments are published, and inferences are forwarded to their application."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared import DeployMessage
from tests.unit.sandbox.backend.serve_applications import NAME, listed, statuses
from tests.unit.sandbox.conftest import PLUGIN_TOKEN
from worker.actions.models import read_model_token
from worker.sandbox.backend.state import State
from worker.sandbox.seed import seed_model


async def test_application_without_a_plugin_is_found_by_its_name(
    backend: httpx.AsyncClient, state: State
) -> None:
    job_without_plugin = state.add_job(agent=1)
    body = {"job": job_without_plugin, "status": "RUNNING", "data": {"name": NAME}}
    await backend.post("/serve_applications/", json=body)

    assert await statuses(backend, plugin_code="digits", job__agent=1) == ["RUNNING"]
    assert await statuses(backend, plugin_code="other") == []
    # And inferences are forwarded to it
    inference = {"agent": 1, "action": "inference", "params": {}, "version": "1.10.0"}
    assert (await backend.post("/plugins/digits/run/", json=inference)).json() == {"digit": 7}


async def test_deployment_is_a_job_and_a_message(
    backend: httpx.AsyncClient, state: State, services: Any
) -> None:
    body = {"agent": 1, "action": "deployment", "params": {"num_cpus": 1, "num_gpus": 0.1}, "job_id": 7}
    answer = await backend.post("/plugins/digits/run/", json=body)
    assert answer.status_code == 201
    created = state.job(answer.json()["id"])
    assert created is not None
    assert (created["status"], created["plugin"], created["parent"]) == ("PENDING", NAME, 7)
    (message,) = services.published
    assert isinstance(message, DeployMessage)
    assert (message.job, message.plugin, message.agent) == (str(created["id"]), NAME, 1)
    assert message.params.num_gpus == 0.1


async def test_deployment_of_a_given_version(backend: httpx.AsyncClient, services: Any) -> None:
    body = {"agent": 1, "action": "deployment", "params": {}, "version": "1.9.0"}
    await backend.post("/plugins/digits/run/", json=body)
    (message,) = services.published
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
async def test_invalid_run_is_an_error(
    backend: httpx.AsyncClient,
    state: State,
    services: Any,
    path: str,
    changes: dict[str, object],
    status: int,
    answer: object,
) -> None:
    body = {"agent": 1, "action": "deployment", "params": {}, **changes}
    given = await backend.post(f"/plugins/{path}/run/", json=body)
    assert (given.status_code, given.json()) == (status, answer)
    assert services.published == []
    assert state.value("SELECT count(*) FROM jobs") == 0


async def test_deployment_with_invalid_params_is_an_error(backend: httpx.AsyncClient, state: State) -> None:
    body = {"agent": 1, "action": "deployment", "params": {"num_cpus": -1}}
    given = await backend.post("/plugins/digits/run/", json=body)
    assert given.status_code == 400
    assert given.json().keys() == {"num_cpus"}
    assert state.value("SELECT count(*) FROM jobs") == 0


async def test_inference_is_forwarded(backend: httpx.AsyncClient, services: Any, job: int) -> None:
    services.applications = [listed()]
    await backend.post("/serve_applications/", json={"job": job})
    params = {"model": 5, "json": {"image": "url"}}
    body = {"agent": 1, "action": "inference", "params": params, "version": "1.10.0"}
    answer = await backend.post("/plugins/digits/run/", json=body)
    assert (answer.status_code, answer.json()) == (200, {"digit": 7})
    (call,) = services.calls
    assert (call.method, str(call.url)) == ("POST", "http://serve/abc/")
    assert call.headers["serve_multiplexed_model_id"] == "5"
    assert json.loads(call.content) == {"image": "url"}


async def test_inference_goes_on_in_the_callers_trace(
    backend: httpx.AsyncClient, services: Any, job: int
) -> None:
    services.applications = [listed()]
    await backend.post("/serve_applications/", json={"job": job})
    body = {"agent": 1, "action": "inference", "params": {}, "version": "1.10.0"}

    context = {"traceparent": "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "tracestate": "vendor=1"}
    await backend.post("/plugins/digits/run/", json=body, headers=context)

    # As Serve's proxy reads it
    (call,) = services.calls
    assert {name: call.headers[name] for name in context} == context


async def test_a_known_model_is_named_by_its_signed_token(
    backend: httpx.AsyncClient, services: Any, job: int, state: State, tmp_path: Path
) -> None:
    # Given a model that has a file
    model = seed_model(state, tmp_path / "files", "http://files", {"weights.txt": b"1"})
    services.applications = [listed()]
    await backend.post("/serve_applications/", json={"job": job})

    # When an inference names it
    body = {"agent": 1, "action": "inference", "params": {"model": model}, "version": "1.10.0"}
    await backend.post("/plugins/digits/run/", json=body)

    # Then the application gets a token that this backend has signed, with the lesser token
    (call,) = services.calls
    claims = read_model_token(call.headers["serve_multiplexed_model_id"], "http://backend")
    assert claims == {"model": str(model), "token": PLUGIN_TOKEN}
    # And that token reads the model's record, in either header
    for header in ("Synapse-Access-Token", "Authorization"):
        headers = {"Synapse-Access-Token": "", header: f"Token {claims['token']}"}
        record = (await backend.get(f"/models/{model}/", headers=headers)).json()
        assert record["file"] == f"http://files/models/{model}.zip"


@pytest.mark.parametrize(
    ("data", "route"),
    [
        ({"route_prefix": "/mine"}, "/mine/"),
        (None, f"/{hashlib.md5(NAME.encode()).hexdigest()}/"),
    ],
)
async def test_inference_uses_the_route_of_the_application(
    backend: httpx.AsyncClient, services: Any, job: int, data: object, route: str
) -> None:
    await backend.post("/serve_applications/", json={"job": job, "status": "RUNNING", "data": data})
    await backend.post(
        "/plugins/digits/run/", json={"agent": 1, "action": "inference", "params": {"method": "get"}}
    )
    (call,) = services.calls
    assert (call.method, call.url.path) == ("GET", route)
    assert "serve_multiplexed_model_id" not in call.headers


async def test_failed_inference_is_an_error(backend: httpx.AsyncClient, services: Any, job: int) -> None:
    body = {"agent": 1, "action": "inference", "params": {}}
    assert (await backend.post("/plugins/digits/run/", json=body)).status_code == 404
    await backend.post("/serve_applications/", json={"job": job})
    assert (await backend.post("/plugins/digits/run/", json=body)).status_code == 503
    services.applications = [listed()]
    assert await statuses(backend) == ["RUNNING"]
    services.inference = httpx.Response(422, text="no image")
    answer = await backend.post("/plugins/digits/run/", json=body)
    assert (answer.status_code, answer.json()) == (422, {"detail": "no image"})
    assert (await backend.post("/plugins/digits/run/", json={**body, "version": "1.9.0"})).status_code == 404


async def test_an_application_that_is_not_deployed_is_named(
    backend: httpx.AsyncClient, services: Any, job: int
) -> None:
    body = {"agent": 1, "action": "inference", "params": {}, "version": "1.10.0"}
    # Given a plugin of which nothing was deployed, then it is named
    answer = await backend.post("/plugins/digits/run/", json=body)
    assert answer.json() == {"detail": f"{NAME} is not deployed on agent 1: it has no serve application."}
    # And so is one that is being deployed
    await backend.post("/serve_applications/", json={"job": job})
    answer = await backend.post("/plugins/digits/run/", json=body)
    assert answer.json() == {"detail": f"The application {NAME} on agent 1 is not running: DEPLOYING."}


async def test_an_application_that_was_removed_is_named(
    backend: httpx.AsyncClient, services: Any, job: int
) -> None:
    # Given an application that ran, and has been removed behind the backend's back
    services.applications = [listed()]
    await backend.post("/serve_applications/", json={"job": job})
    assert await statuses(backend) == ["RUNNING"]
    services.applications = []
    services.inference = httpx.Response(404, text="Path '/abc/' not found.")
    await asyncio.sleep(0.06)  # The backend does not ask the agent again within 50 ms.

    # When an inference finds its route gone
    body = {"agent": 1, "action": "inference", "params": {}, "version": "1.10.0"}
    answer = await backend.post("/plugins/digits/run/", json=body)

    # Then the answer names it
    text = f"{NAME} is not deployed on agent 1: Ray Serve has it no more."
    assert (answer.status_code, answer.json()) == (503, {"detail": text})


async def test_a_404_of_a_running_application_is_its_own(
    backend: httpx.AsyncClient, services: Any, job: int
) -> None:
    services.applications = [listed()]
    await backend.post("/serve_applications/", json={"job": job})
    services.inference = httpx.Response(404, text="no such image")

    body = {"agent": 1, "action": "inference", "params": {}}
    answer = await backend.post("/plugins/digits/run/", json=body)

    assert (answer.status_code, answer.json()) == (404, {"detail": "no such image"})
