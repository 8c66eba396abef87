"""Jobs end once; logs are strict."""

from typing import Any

import httpx
import pytest

from worker.sandbox.backend.state import State

ENTRY = {"event": "message", "data": {"content": "hello"}, "datetime": "2026-01-01T00:00:00Z", "job": 1}


async def test_a_job_is_patched(backend: httpx.AsyncClient, state: State) -> None:
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
async def test_a_patch_is_strict(
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
async def test_an_end_is_for_ever(
    backend: httpx.AsyncClient, state: State, again: dict[str, Any], status: int
) -> None:
    state.add_job()
    end = {"status": "SUCCEEDED", "result": {"n": 1}}
    assert (await backend.patch("/jobs/1/", json=end)).status_code == 200
    assert (await backend.patch("/jobs/1/", json=again)).status_code == status
    job = state.job(1)
    assert job is not None
    assert job.items() >= end.items()


async def test_a_job_that_failed_before_it_ran_may_be_started(
    backend: httpx.AsyncClient, state: State
) -> None:
    state.add_job(status="FAILED", result={"error": "unknown plugin"})
    assert (await backend.patch("/jobs/1/", json={"progress_record": {}})).status_code == 400
    assert (await backend.patch("/jobs/1/", json={"status": "SUCCEEDED"})).status_code == 400
    running = {"status": "RUNNING", "progress_record": {"record": {}}}
    assert (await backend.patch("/jobs/1/", json=running)).status_code == 200
    job = state.job(1)
    assert job is not None
    assert job["status"] == "RUNNING"


async def test_a_job_that_failed_while_it_ran_stays_failed(backend: httpx.AsyncClient, state: State) -> None:
    state.add_job()
    running = {"status": "RUNNING", "progress_record": {"record": {}}}
    assert (await backend.patch("/jobs/1/", json=running)).status_code == 200
    assert (await backend.patch("/jobs/1/", json={"status": "FAILED"})).status_code == 200
    assert (await backend.patch("/jobs/1/", json=running)).status_code == 400


async def test_ids_of_text_and_unknown_ones(backend: httpx.AsyncClient, state: State) -> None:
    state.add_job(id="run-1.a")
    assert (await backend.get("/jobs/run-1.a/")).json()["id"] == "run-1.a"
    assert (await backend.get("/jobs/2/")).status_code == 404


async def test_logs(backend: httpx.AsyncClient, state: State) -> None:
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
