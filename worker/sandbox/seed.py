"""Fills the backend's state with projects, as users do on the real platform; also the demo's digits."""

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy
from PIL import Image
from sklearn.datasets import load_digits

from worker.sandbox.backend.state import State

Files = Mapping[str, object] | Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class SeededProject:
    """The ids of a project and its rows; `tasks` and `data_units` correspond by position."""

    id: int
    data_collection: int
    data_units: range
    tasks: range


def seed_agent(
    state: State, *, url: str | None, token: str | None, id: int = 1, name: str = "sandbox"
) -> int:
    """Write the record of an agent; returns its id."""
    columns = {"id": id, "name": name, "url": url, "token": token, "status": "connected"}
    with state.transaction():
        state.execute("DELETE FROM agents WHERE id = ?", id)
        state.insert("agents", columns)
    return id


def seed_project(
    state: State,
    files: Sequence[Files],
    *,
    specifications: Sequence[Mapping[str, object]],
    name: str = "project",
    files_in_tasks: bool = True,
) -> SeededProject:
    """Create a project with one task for each item of `files`.

    Without `files_in_tasks`, a task's data unit has no files, which clients must request separately.
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
                {
                    "id": id,
                    "data_collection": collection,
                    "files": unit_files,
                    "in_tasks": int(files_in_tasks),
                }
                for id, unit_files in zip(units, files, strict=True)
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
    """Create a project of `count` tasks, each with an `image_1` and a `label_1`, for tests and benchmarks."""
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


def seed_model(state: State, files_dir: Path, files_url: str, files: Mapping[str, bytes]) -> int:
    """Create a model whose file is a zip of `files`; returns its id. A request that names it gets a token."""
    id = _next_id(state, "models")
    folder = files_dir / "models"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{id}.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return state.insert("models", {"id": id, "name": f"model {id}", "file": f"{files_url}/models/{id}.zip"})


IMAGE_AND_LABEL: Sequence[Mapping[str, object]] = (
    {"name": "image_1", "is_primary": True, "file_type": "image"},
    {"name": "label_1", "is_primary": False, "file_type": "data"},
)


def _next_id(state: State, table: str) -> int:
    return int(state.value(f"SELECT coalesce(max(id), 0) + 1 FROM {table}"))  # noqa: S608


TRAINING_ROWS: Final = 898
"""The plugin trains on the rows before this one; the rows from here on are tasks."""

GREY_STEP: Final = 15
"""The data set's pixels are 0 to 16, those of the PNG 0 to 240; dividing by this restores the original."""

IMAGE_SIDE_PIXELS: Final = 64
"""Width and height of an image in pixels: each of the 8 by 8 pixels becomes a square."""


def seed_digits(state: State, files_dir: Path, files_url: str) -> SeededProject:
    """Write the images and the labels as files, and create a project with a task for each.

    `files_url` is the URL at which `files_dir` is served.
    """
    folder = files_dir / "digits"
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    files = []
    for row in range(TRAINING_ROWS, len(digits.target)):
        image, label = f"{row}.png", f"{row}.json"
        pixels = (digits.images[row] * GREY_STEP).astype(numpy.uint8)
        Image.fromarray(pixels).resize((IMAGE_SIDE_PIXELS, IMAGE_SIDE_PIXELS), Image.Resampling.NEAREST).save(
            folder / image
        )
        (folder / label).write_text(json.dumps({"label": int(digits.target[row])}))
        files.append({"image_1": _file(files_url, image, True), "label_1": _file(files_url, label, False)})
    return seed_project(state, files, specifications=IMAGE_AND_LABEL, name="digits")


MODEL_FILES: Final = {"model.txt": b"The sandbox's model has no weights.\n"}
"""What is unpacked for a deployment that is asked for model 1."""
JOB_COUNT: Final = 100
"""Jobs that the backend has from the start; on the real platform its users create them."""


def seed_platform(state: State, files_dir: Path, files_url: str, *, agent: int) -> int:
    """The digits, a model, and jobs of `agent`, each unless it is there already; returns the project's id."""
    project: int | None = state.value("SELECT id FROM projects WHERE name = 'digits'")
    if project is None:
        project = seed_digits(state, files_dir, files_url).id
    if state.value("SELECT 1 FROM models") is None:
        seed_model(state, files_dir, files_url, MODEL_FILES)
    for id_ in range(1, JOB_COUNT + 1):
        if state.job(id_) is None:
            state.add_job(id=id_, agent=agent)
    return project


def true_labels(project: SeededProject) -> dict[int, int]:
    """The digit on each task's image."""
    labels = load_digits().target[TRAINING_ROWS:]
    return {task: int(label) for task, label in zip(project.tasks, labels, strict=True)}


def _file(files_url: str, name: str, is_primary: bool) -> dict[str, object]:
    return {"url": f"{files_url}/digits/{name}", "is_primary": is_primary, "file_name_original": name}
