"""Tokens, files, unknown paths and the record of requests."""

import httpx

from worker.sandbox.backend.state import State
from worker.sandbox.seed import seed_numbered_project


async def test_plugin_token_has_fewer_permissions(
    backend: httpx.AsyncClient, state: State, plugin_headers: dict[str, str]
) -> None:
    seed_numbered_project(state, 1)
    job = state.add_job()
    path = "/tasks/1/"
    assert (await backend.get(path)).status_code == 200
    assert (await backend.get(path, headers=plugin_headers)).status_code == 200
    for wrong in ("", "Token wrong", "full-token", "Tökén"):
        answer = await backend.get(path, headers={"Synapse-Access-Token": wrong.encode()})
        assert answer.status_code == 401
        assert "detail" in answer.json()
    forbidden = [
        await backend.patch(f"/jobs/{job}/", json={"status": "RUNNING"}, headers=plugin_headers),
        await backend.post("/logs/", json=[], headers=plugin_headers),
        await backend.put("/tasks/1/annotate_task_data/", json={}, headers=plugin_headers),
        await backend.get("/agents/", headers=plugin_headers),
    ]
    assert [answer.status_code for answer in forbidden] == [403] * 4
    # An action that runs whole registers what it has deployed
    registered = await backend.post("/serve_applications/", json={"job": job}, headers=plugin_headers)
    assert registered.status_code == 201


async def test_files_need_no_token(backend: httpx.AsyncClient) -> None:
    answer = await backend.get("/files/one.json", headers={"Synapse-Access-Token": ""})
    assert answer.json() == {"label": 1}


async def test_unknown_requests_are_errors_and_recorded(backend: httpx.AsyncClient, state: State) -> None:
    assert (await backend.get("/nowhere/")).status_code == 404
    assert (await backend.delete("/tasks/1/")).status_code == 405
    broken = await backend.put("/tasks/1/annotate_task_data/?schema=any", content=b"{")
    assert broken.json() == {"detail": "JSON parse error."}
    recorded = state.rows("SELECT method, path, status, body FROM requests")
    assert recorded == [
        {"method": "GET", "path": "/nowhere/", "status": 404, "body": ""},
        {"method": "DELETE", "path": "/tasks/1/", "status": 405, "body": ""},
        {"method": "PUT", "path": "/tasks/1/annotate_task_data/?schema=any", "status": 400, "body": "{"},
    ]


async def test_body_that_is_nested_too_deeply_is_an_error(backend: httpx.AsyncClient) -> None:
    answer = await backend.put("/tasks/1/annotate_task_data/?schema=any", content=b"[" * 100_000)

    assert (answer.status_code, answer.json()) == (400, {"detail": "JSON parse error."})
