"""`plugin list` and `plugin check` on broken releases."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.unit.cli.command_line import run_failing
from worker.cli.main import app


def given_release(folder: Path, config: str) -> str:
    (folder / "a@1").mkdir()
    (folder / "a@1" / "config.yaml").write_text(config)
    return str(folder)


def test_action_named_like_markup_is_listed(tmp_path: Path) -> None:
    config = 'code: a\nversion: "1"\nactions: {"[/x]": {entrypoint: p.B}, "y\\ud800": {entrypoint: p.B}}'
    folder = given_release(tmp_path, config)

    done = CliRunner().invoke(app, ["plugin", "list", "--plugins-dir", folder])

    assert done.exit_code == 0, done.exception
    assert "[/x], y" in done.stdout


def test_config_that_is_not_yaml_is_a_problem_of_its_release(tmp_path: Path) -> None:
    folder = given_release(tmp_path, "code: !!int ''")

    done = CliRunner().invoke(app, ["plugin", "list", "--plugins-dir", folder])

    assert done.exit_code == 0, done.exception
    assert "not valid YAML" in " ".join(done.stdout.split())
    assert "not valid YAML" in run_failing("plugin", "check", "a@1", "--plugins-dir", folder)


@pytest.mark.parametrize("source", ["(" * 3000, "x = " + "-" * 100_000 + "1", "x = " + "a." * 50_000 + "b"])
def test_unparsable_code_is_a_problem_of_its_release(tmp_path: Path, source: str) -> None:
    folder = given_release(tmp_path, 'code: a\nversion: "1"\nactions: {x: {entrypoint: p.B}}')
    (tmp_path / "a@1" / "p.py").write_text(source)

    assert "error: a@1: p.py" in run_failing("plugin", "check", "a@1", "--plugins-dir", folder)


def test_a_hidden_module_of_python_fails_the_check(tmp_path: Path) -> None:
    folder = given_release(tmp_path, 'code: a\nversion: "1"\nactions: {x: {entrypoint: p.B}}')
    (tmp_path / "a@1" / "p.py").write_text("class B: pass")
    (tmp_path / "a@1" / "types.py").touch()

    assert "'types' (Python's standard library)" in run_failing(
        "plugin", "check", "a@1", "--plugins-dir", folder
    )
