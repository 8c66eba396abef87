"""What keeps a sandbox from starting is reported before anything is started, with what to do."""

import shutil
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest

from worker.sandbox import SandboxError
from worker.sandbox.local_ray import check_paths
from worker.sandbox.processes import make_temp_dir

Usage = namedtuple("Usage", "total used free")


def test_a_path_with_a_space_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/home/a user/project/.venv/bin/python")

    with pytest.raises(SandboxError, match="path with a space: /home/a user/project"):
        check_paths()


def test_the_temporary_directory_is_the_environment_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    assert make_temp_dir("x-").parent == tmp_path


def test_a_full_temporary_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 10, 5 * 1024**2))

    with pytest.raises(SandboxError, match="has 5 MB left, and 300 are needed\nFree some space"):
        make_temp_dir("x-")


def test_no_temporary_directory_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", fail)

    with pytest.raises(SandboxError, match="No usable temporary directory"):
        make_temp_dir("x-")
