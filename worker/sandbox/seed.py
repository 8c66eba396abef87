"""Fills the backend's state, as projects and labels come about on the real platform."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.sandbox.backend.state import State

Files = Mapping[str, Any] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class SeededProject:
    """Ids of what was made; `tasks` and `data_units` go together."""

    id: int
    data_collection: int
    data_units: range
    tasks: range


def seed_agent(
    state: State, *, url: str | None, token: str | None, id: int = 1, name: str = "sandbox"
) -> int:
    """The record of an agent; its id."""
    columns = {"id": id, "name": name, "url": url, "token": token, "status": "connected"}
    with state.transaction():
        state.execute("DELETE FROM agents WHERE id = ?", id)
        state.insert("agents", columns)
    return id


def seed_project(
    state: State,
    files: Sequence[Files],
    *,
    specifications: Sequence[Mapping[str, Any]],
    name: str = "project",
    files_in_tasks: bool = True,
) -> SeededProject:
    """A project with one task for each item of `files`.

    With `files_in_tasks` off, a task's data unit comes without its files and they must be asked for.
    """
    with state.transaction():
        collection = state.insert("data_collections", {"file_specifications": list(specifications)})
        project = state.insert("projects", {"name": name, "data_collection": collection})
        unit = _next_id(state, "data_units")
        task = _next_id(state, "tasks")
        units, tasks = range(unit, unit + len(files)), range(task, task + len(files))
        state.insert_many(
            "data_units",
            [
                {"id": id, "data_collection": collection, "files": held, "in_tasks": int(files_in_tasks)}
                for id, held in zip(units, files, strict=True)
            ],
        )
        state.insert_many(
            "tasks",
            [
                {"id": id, "project": project, "data_unit": unit}
                for id, unit in zip(tasks, units, strict=True)
            ],
        )
    return SeededProject(project, collection, units, tasks)


def seed_numbered_project(
    state: State,
    count: int,
    *,
    file_url: Callable[[str, int], str] = lambda name, number: f"http://127.0.0.1/{name}/{number}",
    name: str = "numbered",
    files_in_tasks: bool = True,
) -> SeededProject:
    """A project of `count` tasks, each with a primary `image_1` and a `label_1`, for tests and benchmarks."""
    files = [
        {
            "image_1": {
                "url": file_url("image_1", number),
                "is_primary": True,
                "file_name_original": f"{number}.png",
            },
            "label_1": {
                "url": file_url("label_1", number),
                "is_primary": False,
                "file_name_original": f"{number}.json",
            },
        }
        for number in range(count)
    ]
    return seed_project(
        state, files, specifications=IMAGE_AND_LABEL, name=name, files_in_tasks=files_in_tasks
    )


IMAGE_AND_LABEL: Sequence[Mapping[str, Any]] = (
    {"name": "image_1", "is_primary": True, "file_type": "image"},
    {"name": "label_1", "is_primary": False, "file_type": "data"},
)


def _next_id(state: State, table: str) -> int:
    return int(state.value(f"SELECT coalesce(max(id), 0) + 1 FROM {table}"))  # noqa: S608
