"""The program of a Ray job that runs an action of ours whole."""

import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent, indent

import pytest

from worker.plugins import ActionRequest
from worker.whole_run import entrypoint
from worker.whole_run.job_output import JobOutput, read_job_output

HEAD = "from worker.actions import BaseDeploymentAction, ToTaskAction\n"
PARAMS = {"name": "n", "project": 1, "agent": 1, "target_specification_name": "label"}
Program = Callable[[str], JobOutput]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """Run the program for a `ToTaskAction` with this body, and read what it leaves in its log."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))

    def run(body: str) -> JobOutput:
        module = f"release_{abs(hash(body))}"
        text = f"{HEAD}class ToTask(ToTaskAction):\n{indent(dedent(body), '    ')}"
        (tmp_path / f"{module}.py").write_text(text)
        request = ActionRequest("cat@1.0", "to_task", f"{module}.ToTask", PARAMS, {"GREETING": "hi"}, "42")
        monkeypatch.setenv("SYNAPSE_ACTION_REQUEST", request.to_json())
        entrypoint.main()
        return read_job_output(capsys.readouterr().out)

    return run


def test_the_result_of_execute_is_printed(program: Program) -> None:
    output = program(
        """
        def execute(self):
            return {"name": self.params.name, "job": self.ctx.job_id, "greeting": self.ctx.env["GREETING"]}
        """
    )

    assert output.result == {"name": "n", "job": "42", "greeting": "hi"}


def test_run_comes_before_execute(program: Program) -> None:
    output = program(
        """
        def run(self):
            return {"run": self.execute()}
        def execute(self):
            return 5
        """
    )

    assert output.result == {"run": 5}


def test_a_model_and_a_plain_value_are_results(program: Program) -> None:
    model = program("def execute(self):\n    return self.params")
    value = program("def execute(self):\n    return 7")

    assert model.result is not None
    assert model.result["name"] == "n"
    assert value.result == {"result": 7}


def test_what_the_action_says_is_printed_at_once(
    program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    output = program(
        """
        def execute(self):
            self.log_message("hello {name}", name="you")
            self.set_progress(1, 4, "own")
            return {}
        """
    )

    assert output.said is not None
    assert [entry.text for entry in output.said.entries] == ["hello you"]
    assert output.said.progress == {"own": 25.0}


def test_an_error_is_raised_after_what_was_said(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="not this"):
        program(
            """
            def execute(self):
                self.log_message("hello")
                raise ValueError("not this")
            """
        )

    said = read_job_output(capsys.readouterr().out).said
    assert said is not None
    assert [entry.text for entry in said.entries] == ["hello"]


def test_a_result_that_is_no_json_names_its_place(program: Program) -> None:
    with pytest.raises((TypeError, ValueError), match="score"):
        program("def execute(self):\n    return {'score': float('nan')}")


def test_the_token_leaves_the_environment(program: Program) -> None:
    output = program(
        """
        def execute(self):
            import os
            return {"there": "SYNAPSE_ACTION_REQUEST" in os.environ}
        """
    )

    assert output.result == {"there": False}
