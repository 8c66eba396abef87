"""The state file of the backend."""

import threading
from pathlib import Path

import pytest

from worker.sandbox.backend.state import State
from worker.sandbox.seed import seed_numbered_project


def test_writes_are_visible_to_other_connections(state: State, tmp_path: Path) -> None:
    job = state.add_job(action="to_task", plugin="p@1", params={"name": "n"})
    with State(tmp_path / "backend.sqlite3") as other:
        seen = other.job(job)
    assert seen is not None
    assert (seen["status"], seen["params"]) == ("PENDING", {"name": "n"})


def test_jobs_are_numbered_beside_text_ids(state: State) -> None:
    assert state.add_job() == 1
    assert state.add_job(id="a-b.c") == "a-b.c"
    assert state.add_job(id=41) == 41
    assert state.add_job() == 42


def test_failed_transaction_writes_nothing(state: State) -> None:
    def fail_half_way() -> None:
        with state.transaction():
            state.insert("projects", {"name": "half"})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert state.value("SELECT count(*) FROM projects") == 0


def test_every_write_of_a_task_is_recorded(state: State) -> None:
    (task,) = seed_numbered_project(state, 1).tasks
    assert state.annotate(task, {"a": 1})
    assert state.annotate(task, {"a": 2})
    assert not state.annotate(task + 1, {})
    recorded = state.rows("SELECT task, data, count FROM annotations ORDER BY count")
    assert recorded == [{"task": task, "data": {"a": n}, "count": n} for n in (1, 2)]


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
