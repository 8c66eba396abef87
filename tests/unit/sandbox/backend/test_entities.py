"""Tasks, data units, projects, agents and releases, as a run reads and annotates them."""

import json
import zipfile
from pathlib import Path

import httpx
import pytest

from worker.sandbox.backend.state import State
from worker.sandbox.seed import seed_numbered_project

ANNOTATE = "/tasks/1/annotate_task_data/"


async def test_expanded_task_has_its_files(backend: httpx.AsyncClient, state: State) -> None:
    seed_numbered_project(state, 1)
    query = {"fields": "id,data,data_unit", "expand": "data_unit"}
    task = (await backend.get("/tasks/1/", params=query)).json()
    assert task.keys() == {"id", "data", "data_unit"}
    assert task["data_unit"]["files"]["image_1"]["is_primary"] is True
    assert (await backend.get("/tasks/1/")).json()["data_unit"] == 1


async def test_files_of_a_task_may_need_a_request(backend: httpx.AsyncClient, state: State) -> None:
    seed_numbered_project(state, 1, files_in_tasks=False)
    task = (await backend.get("/tasks/1/", params={"expand": "data_unit"})).json()
    assert task["data_unit"] == {"id": 1}
    unit = (await backend.get("/data_units/1/", params={"expand": "files"})).json()
    assert unit["files"].keys() == {"image_1", "label_1"}


async def test_project_data_collection_and_agents(backend: httpx.AsyncClient, state: State) -> None:
    project = seed_numbered_project(state, 1)
    collection = (await backend.get(f"/projects/{project.id}/")).json()["data_collection"]
    specifications = (await backend.get(f"/data_collections/{collection}/")).json()["file_specifications"]
    assert [specification["name"] for specification in specifications] == ["image_1", "label_1"]
    (agent,) = (await backend.get("/agents/", params={"id": 1})).json()["results"]
    assert (agent["url"], agent["token"]) == ("http://agent", "agent-token")
    assert (await backend.get("/agents/", params={"id": 2})).json()["results"] == []


async def test_lists_have_pages(backend: httpx.AsyncClient, state: State) -> None:
    seed_numbered_project(state, 5)
    url: str | None = "/sdk/tasks/?fields=id&page_size=2"
    pages = []
    while url:
        page = (await backend.get(url)).json()
        assert page["count"] == 5
        pages.append([task["id"] for task in page["results"]])
        url = page["next"]
    assert pages == [[1, 2], [3, 4], [5]]
    assert page["previous"].startswith("http://backend/sdk/tasks/?")
    assert (await backend.get("/sdk/tasks/?page=4&page_size=2")).status_code == 404
    assert (await backend.get("/sdk/tasks/?page=x")).json() == {"page": ["must be a positive integer"]}


async def test_page_has_at_most_a_thousand_items(backend: httpx.AsyncClient, state: State) -> None:
    seed_numbered_project(state, 1001)
    assert len((await backend.get("/sdk/tasks/?page_size=5000")).json()["results"]) == 1000
    assert len((await backend.get("/sdk/tasks/")).json()["results"]) == 100


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("project=1", [1, 2, 3]),
        ("project=2", [4, 5]),
        ("project=3", []),
        ("ids=1,3", [1, 3]),
        ("id__in=5&project=2", [5]),
        ("data_unit=2", [2]),
        ("annotated=true", [3]),
        ("annotated=false&project=1", [1, 2]),
        ("nobody_knows_this=1", [1, 2, 3, 4, 5]),
    ],
)
async def test_task_filters(backend: httpx.AsyncClient, state: State, query: str, ids: list[int]) -> None:
    seed_numbered_project(state, 3)
    seed_numbered_project(state, 2)
    state.annotate(3, {})
    results = (await backend.get(f"/sdk/tasks/?fields=id&{query}")).json()["results"]
    assert [task["id"] for task in results] == ids


async def test_annotation_is_written(backend: httpx.AsyncClient, state: State) -> None:
    seed_numbered_project(state, 1)
    body = {"action": "submit", "data": {"label": 7}}
    for _ in range(2):
        answer = await backend.put("/tasks/1/annotate_task_data/", params={"schema": "any"}, json=body)
        assert answer.status_code == 200
    task = state.row("SELECT data, writes FROM tasks")
    assert task == {"data": {"label": 7}, "writes": 2}


@pytest.mark.parametrize(
    ("path", "body", "status", "answer"),
    [
        (ANNOTATE, {"action": "submit"}, 400, {"data": ["required"]}),
        (ANNOTATE, {"action": "submit", "data": []}, 400, {"data": ["wrong type"]}),
        (ANNOTATE, {"action": "submit", "data": {}, "x": 1}, 400, {"x": ["unknown"]}),
        (
            "/tasks/1/annotate_task_data/",
            {"action": "draft", "data": {}},
            400,
            {"action": ["must be submit"]},
        ),
        (
            "/tasks/1/annotate_task_data/?schema=dm",
            {"action": "submit", "data": {}},
            400,
            {"schema": ["must be any or dm_schema_v1"]},
        ),
        (
            "/tasks/9/annotate_task_data/",
            {"action": "submit", "data": {}},
            404,
            {"detail": "No Task matches the given query."},
        ),
    ],
)
async def test_invalid_annotation_is_an_error(
    backend: httpx.AsyncClient, state: State, path: str, body: object, status: int, answer: object
) -> None:
    seed_numbered_project(state, 1)
    given = await backend.put(path, json=body)
    assert (given.status_code, given.json()) == (status, answer)


async def test_releases_are_found_by_id_and_by_name(backend: httpx.AsyncClient, plugins_dir: Path) -> None:
    by_name = (await backend.get("/plugin_releases/digits@1.10.0/")).json()
    assert by_name["config"]["code"] == "digits"
    assert (await backend.get(f"/plugin_releases/{by_name['id']}/")).json() == by_name
    assert (await backend.get("/plugin_releases/digits@2.0/")).status_code == 404
    with zipfile.ZipFile(plugins_dir / "digits@2.0.zip", "w") as archive:
        archive.writestr(
            "digits-2/config.yaml", json.dumps({"code": "digits", "version": "2.0", "actions": {}})
        )
    (plugins_dir / "broken@1.zip").write_bytes(b"no zip")
    assert (await backend.get("/plugin_releases/digits@2.0/")).json()["version"] == "2.0"
