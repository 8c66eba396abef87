"""Jobs end once, logs are strict, and records of applications follow the agent."""

from typing import Any

import httpx
import pytest

from tests.unit.sandbox.backend.serve_applications import NAME, listed, statuses
from worker.sandbox.backend.state import State

ENTRY = {"event": "message", "data": {"content": "hello"}, "datetime": "2026-01-01T00:00:00Z", "job": 1}


async def test_job_is_patched(backend: httpx.AsyncClient, state: State) -> None:
    state.add_job()
    changes = {"status": "RUNNING", "progress_record": {"record": {}}, "metrics_record": {}, "meta": {"a": 1}}
    answer = await backend.patch("/jobs/1/", json=changes)
    assert answer.status_code == 200
    assert (await backend.get("/jobs/1/")).json().items() >= changes.items()


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"colour": 1}, {"colour": ["unknown"]}),
        ({"status": "DONE"}, {"status": ['"DONE" is not a valid choice.']}),
        ({"status": 1}, {"status": ["wrong type"]}),
        ({"progress_record": "x"}, {"progress_record": ["wrong type"]}),
        ([], {"detail": "Invalid data: expected an object."}),
    ],
)
async def test_invalid_patch_is_an_error(
    backend: httpx.AsyncClient, state: State, changes: object, answer: object
) -> None:
    state.add_job()
    given = await backend.patch("/jobs/1/", json=changes)
    assert (given.status_code, given.json()) == (400, answer)


@pytest.mark.parametrize(
    ("again", "status"),
    [
        ({"status": "SUCCEEDED", "result": {"n": 1}}, 200),
        ({"status": "SUCCEEDED"}, 200),
        ({"status": "SUCCEEDED", "result": {"n": 2}}, 400),
        ({"status": "FAILED", "result": {"n": 1}}, 400),
        ({"status": "RUNNING"}, 400),
        ({"progress_record": {}}, 400),
        ({"result": {"n": 1}}, 400),
    ],
)
async def test_ended_job_does_not_change(
    backend: httpx.AsyncClient, state: State, again: dict[str, Any], status: int
) -> None:
    state.add_job()
    end = {"status": "SUCCEEDED", "result": {"n": 1}}
    assert (await backend.patch("/jobs/1/", json=end)).status_code == 200
    assert (await backend.patch("/jobs/1/", json=again)).status_code == status
    job = state.job(1)
    assert job is not None
    assert job.items() >= end.items()


async def test_job_that_failed_before_it_ran_can_start(backend: httpx.AsyncClient, state: State) -> None:
    state.add_job(status="FAILED", result={"error": "unknown plugin"})
    assert (await backend.patch("/jobs/1/", json={"progress_record": {}})).status_code == 400
    assert (await backend.patch("/jobs/1/", json={"status": "SUCCEEDED"})).status_code == 400
    running = {"status": "RUNNING", "progress_record": {"record": {}}}
    assert (await backend.patch("/jobs/1/", json=running)).status_code == 200
    job = state.job(1)
    assert job is not None
    assert job["status"] == "RUNNING"


async def test_job_that_failed_while_it_ran_stays_failed(backend: httpx.AsyncClient, state: State) -> None:
    state.add_job()
    running = {"status": "RUNNING", "progress_record": {"record": {}}}
    assert (await backend.patch("/jobs/1/", json=running)).status_code == 200
    assert (await backend.patch("/jobs/1/", json={"status": "FAILED"})).status_code == 200
    assert (await backend.patch("/jobs/1/", json=running)).status_code == 400


async def test_job_ids_may_be_text(backend: httpx.AsyncClient, state: State) -> None:
    state.add_job(id="run-1.a")
    assert (await backend.get("/jobs/run-1.a/")).json()["id"] == "run-1.a"
    assert (await backend.get("/jobs/2/")).status_code == 404


async def test_log_entries_are_written(backend: httpx.AsyncClient, state: State) -> None:
    state.add_job()
    assert (await backend.post("/logs/", json=ENTRY)).status_code == 201
    many = [{**ENTRY, "job": "1", "level": "info"}, {**ENTRY, "step": "prepare"}]
    assert len((await backend.post("/logs/", json=many)).json()) == 2
    assert state.rows("SELECT data, step, level FROM logs") == [
        {"data": {"content": "hello"}, "step": None, "level": None},
        {"data": {"content": "hello"}, "step": None, "level": "info"},
        {"data": {"content": "hello"}, "step": "prepare", "level": None},
    ]
    assert (await backend.post("/logs/", json=[ENTRY, {**ENTRY, "x": 1}])).json() == {"x": ["unknown"]}
    assert (await backend.post("/logs/", json={"event": "message"})).status_code == 400
    assert "job" in (await backend.post("/logs/", json={**ENTRY, "job": 7})).json()
    assert state.value("SELECT count(*) FROM logs") == 3


async def test_record_follows_the_agent(backend: httpx.AsyncClient, services: Any, job: int) -> None:
    created = await backend.post("/serve_applications/", json={"job": job})
    assert created.status_code == 201
    assert created.json()["status"] == "DEPLOYING"
    assert await statuses(backend) == ["DEPLOYING"]
    services.applications = [listed()]
    assert await statuses(backend) == ["RUNNING"]
    services.agent_is_up = False
    services.applications = []
    assert await statuses(backend) == ["RUNNING"]
    services.agent_is_up = True
    assert await statuses(backend) == ["UNAVAILABLE"]
    services.applications = [listed(status="UNHEALTHY")]
    assert await statuses(backend) == ["UNHEALTHY"]


async def test_new_record_is_synchronized_at_once(
    backend: httpx.AsyncClient, services: Any, job: int
) -> None:
    services.applications = [listed()]
    assert (await backend.post("/serve_applications/", json={"job": job})).json()["status"] == "RUNNING"


async def test_two_requests_create_two_records(backend: httpx.AsyncClient, job: int) -> None:
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
async def test_invalid_record_is_an_error(
    backend: httpx.AsyncClient, job: int, body: object, answer: object
) -> None:
    given = await backend.post("/serve_applications/", json=body)
    assert (given.status_code, given.json()) == (400, answer)


async def test_record_filters(backend: httpx.AsyncClient, state: State, job: int) -> None:
    other = state.add_job(plugin="other@1", agent=2)
    for owner, status in ((job, "RUNNING"), (other, "UNHEALTHY")):
        await backend.post("/serve_applications/", json={"job": owner, "status": status})
    assert await statuses(backend) == ["RUNNING", "UNHEALTHY"]
    assert await statuses(backend, plugin_code="digits", job__agent=1) == ["RUNNING"]
    assert await statuses(backend, plugin_code=NAME) == ["RUNNING"]
    assert await statuses(backend, plugin_code="digit") == []
    assert await statuses(backend, job__agent=2) == ["UNHEALTHY"]
    assert await statuses(backend, job=other) == ["UNHEALTHY"]
