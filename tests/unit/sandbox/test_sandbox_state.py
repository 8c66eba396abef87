"""The backend's file and what fills it."""

import threading
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_digits

from worker.sandbox.backend.state import State
from worker.sandbox.seed import GREY_STEP, TRAINING_ROWS, seed_digits, seed_numbered_project, true_labels


def test_another_process_would_see_what_is_written(state: State, tmp_path: Path) -> None:
    job = state.add_job(action="to_task", plugin="p@1", params={"name": "n"})
    with State(tmp_path / "backend.sqlite3") as other:
        seen = other.job(job)
    assert seen is not None
    assert (seen["status"], seen["params"]) == ("PENDING", {"name": "n"})


def test_jobs_are_numbered_also_beside_ids_of_text(state: State) -> None:
    assert state.add_job() == 1
    assert state.add_job(id="a-b.c") == "a-b.c"
    assert state.add_job(id=41) == 41
    assert state.add_job() == 42


def test_a_failed_transaction_leaves_nothing(state: State) -> None:
    def fail_half_way() -> None:
        with state.transaction():
            state.insert("projects", {"name": "half"})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert state.value("SELECT count(*) FROM projects") == 0


def test_every_write_of_a_task_is_booked(state: State) -> None:
    (task,) = seed_numbered_project(state, 1).tasks
    assert state.annotate(task, {"a": 1})
    assert state.annotate(task, {"a": 2})
    assert not state.annotate(task + 1, {})
    booked = state.rows("SELECT task, data, count FROM annotations ORDER BY count")
    assert booked == [{"task": task, "data": {"a": n}, "count": n} for n in (1, 2)]


def test_threads_share_a_state(state: State) -> None:
    (task,) = seed_numbered_project(state, 1).tasks
    threads = [
        threading.Thread(target=lambda: [state.annotate(task, {}) for _ in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state.value("SELECT writes FROM tasks WHERE id = ?", task) == 200


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
