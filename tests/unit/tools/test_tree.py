"""Which files are read, and how findings are printed."""

import subprocess
from pathlib import Path

import pytest

from tools.tree import Finding, Tree, report


def test_tracked_files_are_listed_unless_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a repository with a tracked file, a deleted one and one that is not tracked
    for variable in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):
        monkeypatch.delenv(variable, raising=False)
    for name in ("a.py", "deleted.py", "untracked.py"):
        (tmp_path / name).write_text("")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "a.py", "deleted.py"], cwd=tmp_path, check=True)
    (tmp_path / "deleted.py").unlink()

    # When its files are listed, then only the first is there
    assert Tree.tracked(tmp_path).files == ("a.py",)


def test_python_files_are_those_below_the_folders(tmp_path: Path) -> None:
    # Given files of several folders
    tree = Tree(tmp_path, ("shared/a.py", "shared/b.lua", "sharedother/c.py", "worker/d/e.py"))

    # Then only Python files below the folders asked for are listed
    assert tree.python(["shared", "worker"]) == ["shared/a.py", "worker/d/e.py"]


def test_findings_are_printed_in_order_of_place(capsys: pytest.CaptureFixture[str]) -> None:
    # Given findings of a line and of a folder
    findings = [Finding("b.py", 3, "wrong, mend it"), Finding("a", 0, "full, move files")]

    # When they are reported
    code = report(findings, "layout")

    # Then each has its line, and the check fails
    assert capsys.readouterr().out == "a: full, move files\nb.py:3: wrong, mend it\nlayout: 2 findings\n"
    assert code == 1


def test_report_without_findings_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([], "layout") == 0
    assert capsys.readouterr().out == ""


def test_files_of_a_source_archive_are_all_but_leavings(tmp_path: Path) -> None:
    # Given an unpacked archive, which is no repository, with what tools leave behind
    for name in ("shared/a.py", ".venv/b.py", "x.egg-info/c", "shared/__pycache__/a.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    # When its files are listed, then only its own are there
    assert Tree.tracked(tmp_path).files == ("shared/a.py",)
