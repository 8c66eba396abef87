"""What an author does first: a release from a template, and one task through its hooks."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.unit.cli.command_line import run_failing
from worker.cli.main import app

Plugin = Callable[..., Result]

TO_TASK = """
    import os, time
    from worker.actions import ToTaskAction

    class ToTask(ToTaskAction):
        def convert_data_from_file(self, image, name, url, file, task_data=None):
            {body}
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Plugin:
    """Runs `plugin` with a store in `tmp_path`."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["plugin", *arguments, "--plugins-dir", str(tmp_path)])

    return run


def given_to_task(folder: Path, body: str) -> str:
    """A release whose conversion of a file is `body`; returns a file to convert."""
    release = folder / "own@1"
    release.mkdir()
    (release / "config.yaml").write_text(
        'code: own\nversion: "1"\nactions: {to_task: {entrypoint: p.ToTask}}'
    )
    (release / "p.py").write_text(dedent(TO_TASK).format(body=body))
    (folder / "data.txt").write_text("data")
    return str(folder / "data.txt")


@pytest.mark.parametrize("fastapi", [[], ["--fastapi"]], ids=["plain", "fastapi"])
@pytest.mark.parametrize("kind", ["pre-processor", "to_task", "both"])
def test_a_new_release_is_sound(plugin: Plugin, kind: str, fastapi: list[str]) -> None:
    made = plugin("new", "words", "--kind", kind, *fastapi)

    assert made.exit_code == 0, made.output
    checked = plugin("check", "words@1.0.0")
    assert checked.exit_code == 0, checked.output
    assert ("deploys Model on Ray Serve" in checked.output) is (kind != "to_task")
    assert ("annotates by its hooks, by file and by inference" in checked.output) is (kind != "pre-processor")


@pytest.mark.parametrize("kind", ["to_task", "both"])
def test_a_new_release_takes_a_task_by_file(plugin: Plugin, tmp_path: Path, kind: str) -> None:
    plugin("new", "words", "--kind", kind)

    done = plugin("run", "words@1.0.0", "to_task", "--file", str(tmp_path / "words@1.0.0" / "sample.json"))

    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"classification": {"label": "animal"}}
    assert "info: sample.json is a animal" in done.stderr


@pytest.mark.parametrize("is_file", [False, True], ids=["as JSON", "as a file"])
def test_a_new_release_takes_a_task_by_inference(plugin: Plugin, tmp_path: Path, is_file: bool) -> None:
    plugin("new", "words")
    answer = '{"label": "vehicle"}'
    if is_file:
        (tmp_path / "answer.json").write_text(answer)
        answer = str(tmp_path / "answer.json")

    done = plugin("run", "words@1.0.0", "to_task", "--inference", answer, "--primary", "http://x/cat.png")

    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"classification": {"label": "vehicle"}}
    assert '"text": "cat.png"' in done.stderr


def test_a_hook_that_raises_is_shown_with_its_own_lines(plugin: Plugin, tmp_path: Path) -> None:
    file = given_to_task(tmp_path, "return {'size': len(None)}")

    done = plugin("run", "own@1", "to_task", "--file", file)

    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.splitlines()[0] == "Traceback (most recent call last):"
    assert f'File "{tmp_path}/own@1/p.py", line 7, in convert_data_from_file' in done.stderr
    assert "object of type 'NoneType' has no len()" in done.stderr
    assert "once.py" not in done.stderr


def test_an_action_that_runs_whole_is_said_to(plugin: Plugin, tmp_path: Path) -> None:
    file = given_to_task(tmp_path, "return {}")
    with (tmp_path / "own@1" / "p.py").open("a") as module:
        module.write("\n    def execute(self):\n        return {}\n")

    done = plugin("run", "own@1", "to_task", "--file", file)

    assert done.exit_code == 0, done.output
    assert "runs whole, as a Ray job, for its own execute(); plugin run calls its hooks alone" in done.stderr


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("os._exit(7)", "convert_data_from_file ended its process (exit code 7)"),
        ("time.sleep(60)", "convert_data_from_file took longer than 2 s and was stopped"),
    ],
)
def test_a_hook_without_an_end_is_one_line(tmp_path: Path, body: str, error: str) -> None:
    file = given_to_task(tmp_path, body)
    options = ["--plugins-dir", str(tmp_path), "--timeout", "2"]

    assert error in run_failing("plugin", "run", "own@1", "to_task", "--file", file, *options)


def test_what_is_no_json_is_named_by_its_place(plugin: Plugin, tmp_path: Path) -> None:
    file = given_to_task(tmp_path, "return {'boxes': [{'score': float('nan')}]}")

    done = plugin("run", "own@1", "to_task", "--file", file)

    assert done.exit_code == 1
    assert "boxes[0].score is NaN" in done.stderr


def test_the_hooks_see_neither_settings_nor_tokens(
    plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNAPSE_ACCESS_TOKEN", "t0ken")
    file = given_to_task(tmp_path, "return {'names': sorted(os.environ)}")

    done = plugin("run", "own@1", "to_task", "--file", file)

    assert "SYNAPSE_ACCESS_TOKEN" in os.environ
    assert "SYNAPSE_ACCESS_TOKEN" not in json.loads(done.stdout)["names"]


def test_nothing_is_written_over(plugin: Plugin, tmp_path: Path) -> None:
    plugin("new", "words")
    before = (tmp_path / "words@1.0.0" / "config.yaml").read_text()

    assert "is there already" in run_failing(
        "plugin", "new", "words", "--kind", "to_task", "--plugins-dir", str(tmp_path)
    )
    assert (tmp_path / "words@1.0.0" / "config.yaml").read_text() == before


@pytest.mark.parametrize("code", ["../up", "a/b", "..", ""])
def test_a_name_that_leads_elsewhere_is_rejected(tmp_path: Path, code: str) -> None:
    (tmp_path / "store").mkdir()

    assert "is no name of a release" in run_failing(
        "plugin", "new", code, "--plugins-dir", str(tmp_path / "store")
    )
    assert list(tmp_path.rglob("config.yaml")) == []


@pytest.mark.parametrize("options", [[], ["--file", "a", "--inference", "{}"]])
def test_a_task_comes_by_one_way(plugin: Plugin, tmp_path: Path, options: list[str]) -> None:
    given_to_task(tmp_path, "return {}")

    assert "give --file or --inference" in plugin("run", "own@1", "to_task", *options).stderr
