"""What the probes say of the states that workers write."""

import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from worker.host import make_private, process_start
from worker.monitoring.worker_states import (
    MAX_SILENT_SECONDS,
    StateFile,
    WorkerState,
    problems,
    read_states,
    remove_states_of_ended,
    states_folder,
    states_root,
)

ENDED_PID = 2**22 + 1
"""Larger than any number that Linux gives to a process."""


@pytest.fixture
def state() -> WorkerState:
    """Of a worker that has just written it."""
    now = time.monotonic()
    return WorkerState("deploy@host", os.getpid(), now, is_connected=True, turned_at=now)


def silent(state: WorkerState) -> float:
    return state.written_at - MAX_SILENT_SECONDS - 1


def test_a_connected_worker_is_live_and_ready(state: WorkerState) -> None:
    assert problems([state], ready=False) == []
    assert problems([state], ready=True) == []


def test_a_worker_without_its_broker_is_live_and_not_ready(state: WorkerState) -> None:
    lost = replace(state, is_connected=False, turned_at=None)

    assert problems([lost], ready=False) == []
    assert problems([lost], ready=True) == ["deploy@host: it is not connected to its broker"]


def test_a_killed_worker_is_not_live(state: WorkerState) -> None:
    assert problems([replace(state, pid=ENDED_PID)], ready=False) == ["deploy@host: its process is gone"]


def test_a_suspended_worker_is_not_live(state: WorkerState) -> None:
    [line] = problems([replace(state, written_at=silent(state))], ready=False)

    assert line.startswith("deploy@host: its process has not run for 21 s")


def test_a_worker_whose_event_loop_hangs_is_not_live(state: WorkerState) -> None:
    [line] = problems([replace(state, turned_at=silent(state))], ready=False)

    assert line.startswith("deploy@host: its event loop has not turned for 21 s")


def test_the_loop_of_a_solo_pool_is_not_watched(state: WorkerState) -> None:
    assert problems([replace(state, turned_at=None)], ready=True) == []


def test_one_worker_of_several_is_named(state: WorkerState) -> None:
    gone = replace(state, name="logs@host", pid=ENDED_PID)

    assert problems([state, gone], ready=False) == ["logs@host: its process is gone"]


def test_no_worker_at_all_is_a_problem() -> None:
    assert problems([], ready=False) == ["no worker with these settings runs on this host"]


def test_a_state_is_read_as_it_was_written(tmp_path: Path, state: WorkerState) -> None:
    StateFile(tmp_path / "new", "deploy@host").write(state)

    assert list(read_states(tmp_path / "new")) == [state]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", json.dumps({"name": "x"}), json.dumps({"x": 1}), "[" * 100_000]
)
def test_a_file_that_is_no_state_is_left_out(tmp_path: Path, state: WorkerState, text: str) -> None:
    StateFile(tmp_path, "deploy@host").write(state)
    (tmp_path / "other.json").write_text(text)

    assert list(read_states(tmp_path)) == [state]


def test_states_of_killed_workers_are_removed(tmp_path: Path, state: WorkerState) -> None:
    state = replace(state, pid=os.getppid())
    StateFile(tmp_path, "deploy@host").write(state)
    StateFile(tmp_path, "old@host").write(replace(state, name="old@host", pid=ENDED_PID))

    remove_states_of_ended(tmp_path)

    assert list(read_states(tmp_path)) == [state]


def test_a_name_with_a_slash_stays_in_the_folder(tmp_path: Path, state: WorkerState) -> None:
    StateFile(tmp_path, "../../etc/passwd").write(replace(state, name="../../etc/passwd"))

    assert [path.parent for path in tmp_path.rglob("*.json")] == [tmp_path]


def test_installations_on_one_host_have_folders_of_their_own() -> None:
    one = states_folder({"REDIS_URL": "redis://one"})

    assert one == states_folder({"REDIS_URL": "redis://one", "PATH": "/bin"})
    assert one != states_folder({"REDIS_URL": "redis://two"})
    assert one != states_folder({"REDIS_URL": "redis://one", "WORKER_REDIS_PREFIX": "other"})


def test_a_folder_of_another_user_is_not_used(
    tmp_path: Path, state: WorkerState, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)

    with pytest.raises(PermissionError, match="belongs to another user"):
        StateFile(tmp_path, "deploy@host").write(state)


def test_a_process_with_the_number_of_a_killed_one_is_none(state: WorkerState) -> None:
    started = process_start(os.getpid())
    assert started is not None

    assert problems([replace(state, started=started)], ready=False) == []
    assert problems([replace(state, started=started - 1)], ready=False) == [
        "deploy@host: its process is gone"
    ]


def test_a_state_from_before_a_reboot_is_of_no_worker(state: WorkerState) -> None:
    before = replace(state, written_at=state.written_at + 10_000)

    assert problems([before], ready=False) == ["deploy@host: its process is gone"]


def test_a_state_with_this_process_s_number_is_removed(tmp_path: Path, state: WorkerState) -> None:
    # Given a container that was started anew with its temporary directory, and another name
    StateFile(tmp_path, "deploy@old").write(replace(state, name="deploy@old"))

    remove_states_of_ended(tmp_path)

    assert list(read_states(tmp_path)) == []


@pytest.mark.parametrize("pid", [2**70, 0, -1, "x"])
def test_a_state_with_an_impossible_number_is_left_out(tmp_path: Path, pid: object) -> None:
    text = {"name": "x", "pid": pid, "written_at": 1.0, "is_connected": True, "turned_at": None}
    (tmp_path / "x.json").write_text(json.dumps(text))

    assert list(read_states(tmp_path)) == []


def test_a_folder_that_another_user_has_linked_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a link where the folder of all states would be
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    states_folder().parent.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(PermissionError):
        make_private(states_folder(), states_root())
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_folder_that_others_can_write_is_not_used(tmp_path: Path, state: WorkerState) -> None:
    (tmp_path / "states").mkdir()
    (tmp_path / "states").chmod(0o777)

    with pytest.raises(PermissionError, match="can be written by others"):
        StateFile(tmp_path / "states", "deploy@host").write(state)


def test_folders_are_this_user_s_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    make_private(states_folder() / "metrics", states_root())

    for folder in (states_folder().parent, states_folder(), states_folder() / "metrics"):
        assert folder.stat().st_mode & 0o777 == 0o700
