"""Seeded projects, and the demo's digits."""

from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

from worker.sandbox.backend.state import State
from worker.sandbox.seed import (
    GREY_STEP,
    JOB_COUNT,
    TRAINING_ROWS,
    seed_digits,
    seed_numbered_project,
    seed_platform,
    true_labels,
)


def test_projects_do_not_share_ids(state: State) -> None:
    first, second = seed_numbered_project(state, 3), seed_numbered_project(state, 2)
    assert (list(first.tasks), list(second.tasks)) == ([1, 2, 3], [4, 5])
    assert first.id != second.id


def test_digits_can_be_read_back_from_their_files(state: State, tmp_path: Path) -> None:
    project = seed_digits(state, tmp_path, "http://host/files")
    labels = true_labels(project)
    assert len(project.tasks) == len(labels) == 899
    unit = state.row("SELECT files FROM data_units WHERE id = ?", project.data_units[0])
    assert unit is not None
    image = unit["files"]["image_1"]
    assert image["is_primary"]
    assert image["url"] == f"http://host/files/digits/{TRAINING_ROWS}.png"
    with Image.open(tmp_path / "digits" / image["file_name_original"]) as picture:
        small = [[picture.getpixel((x * 8, y * 8)) / GREY_STEP for x in range(8)] for y in range(8)]  # type: ignore[operator]
    digits = load_digits()
    assert small == digits.images[TRAINING_ROWS].tolist()
    assert labels[project.tasks[0]] == digits.target[TRAINING_ROWS]


def test_a_platform_that_starts_again_keeps_what_it_has(state: State, tmp_path: Path) -> None:
    first = seed_platform(state, tmp_path, "http://host/files", agent=1)
    counts = [state.value(f"SELECT count(*) FROM {table}") for table in ("tasks", "models", "jobs")]

    assert counts == [899, 1, JOB_COUNT]
    assert seed_platform(state, tmp_path, "http://host/files", agent=1) == first
    assert counts == [state.value(f"SELECT count(*) FROM {table}") for table in ("tasks", "models", "jobs")]
