"""How a job is submitted, and what is read of what it leaves."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from worker.platform import register_secrets
from worker.plugins import (
    ActionRequest,
    ClientAccess,
    PluginCallError,
    PluginHostUnavailableError,
    PluginStore,
    RayDriverError,
    Release,
)
from worker.plugins.ray_driver import jobs as operations
from worker.whole_run.job_output import MAX_RESULT_BYTES, error_in, read_job_output
from worker.whole_run.ray_jobs import RayJobs

RESULT = "__SYNAPSE_RESULT_START__\n{}\n__SYNAPSE_RESULT_END__\n"
OUTPUT = "__SYNAPSE_OUTPUT_START__\n{}\n__SYNAPSE_OUTPUT_END__\n"
REQUEST = ActionRequest(
    "cat@1.0",
    "to_task",
    "plugin.a:ToTask",
    params={"name": "n"},
    env={"GREETING": "hello"},
    job="42",
    language="ko",
    required_resources={"required_cpu_count": 2},
    clients=ClientAccess("http://backend", "plugin-token", "acme", "http://agent"),
)
TRACEBACK = """
doing
Traceback (most recent call last):
  File "a.py", line 1, in <module>
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "b.py", line 2, in run
    raise ValueError("first\\nsecond")
ValueError: first
second
"""


@pytest.mark.parametrize("result", [{"a": 'with "quotes" \\ and 한글'}, {"nested": {"list": [1, None]}}, {}])
def test_the_result_stands_between_the_markers(result: dict[str, Any]) -> None:
    log = f"before\n{RESULT.format(json.dumps(result))}after\n"

    assert read_job_output(log).result == result


def test_the_last_result_counts() -> None:
    log = RESULT.format('{"n": 1}') + RESULT.format('{"n": 2}')

    assert read_job_output(log).result == {"n": 2}


def test_a_log_that_is_cut_amid_a_character_is_read() -> None:
    whole = ("한" * 100 + "\nnoise\nValueError: 한글\n" + RESULT.format('{"n": 1}')).encode()

    for cut in range(30):
        output = read_job_output(whole[cut:].decode(errors="replace"))
        assert output.result == {"n": 1}
        assert "ValueError: 한글" in output.error


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nothing", "its job has left no result"),
        ("…}\n__SYNAPSE_RESULT_END__\n", "its job has left more than can be read"),
        (RESULT.format("[1]"), "its result is no JSON object"),
        (RESULT.format('{"n": NaN}'), "its result is no JSON object"),
        (RESULT.format('{"n": 1e999}'), "its result is no JSON object"),
        (RESULT.format("no JSON"), "its result is no JSON object"),
        (RESULT.format(f'"{"x" * 2 * MAX_RESULT_BYTES}"'), "its result has 2.0 MB, and 1 MB is allowed"),
    ],
)
def test_what_is_no_result_is_a_problem(text: str, problem: str) -> None:
    output = read_job_output(text)

    assert (output.result, output.problem) == (None, problem)


def test_known_secrets_are_masked_in_a_result() -> None:
    register_secrets(["a-secret-of-the-worker"])

    output = read_job_output(RESULT.format('{"said": "a-secret-of-the-worker"}'))

    assert output.result is not None
    assert "a-secret" not in output.result["said"]


def test_what_the_action_said_is_read() -> None:
    said = {"progress": {"own": 50}, "metrics": {"own": {"files": 3}}}

    output = read_job_output(OUTPUT.format(json.dumps(said))).said

    assert output is not None
    assert (output.progress, output.metrics) == (said["progress"], said["metrics"])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (TRACEBACK, "ValueError: first second"),
        ("a\nb\nNo module named synapse_sdk\n", "a b No module named synapse_sdk"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("", ""),
    ],
)
def test_the_error_is_what_follows_the_last_frames(text: str, error: str) -> None:
    assert error_in(text) == error


class Ray:
    """The calls of the driver process; `answers` by the operation's name."""

    def __init__(self) -> None:
        self.submissions: list[dict[str, Any]] = []
        self.answers: dict[str, Any] = {
            "submit_job": {"id": "x", "status": 200, "text": ""},
            "job_state": None,
        }

    def connect(self) -> None: ...

    def call(self, function: Any, *arguments: Any, timeout: float, undo: Any = None) -> Any:
        answer = self.answers[function.__name__]
        if isinstance(answer, Exception):
            raise answer
        if function is operations.submit_job:
            assert undo is operations.undo_submission
            self.submissions.append(arguments[0])
        return answer


@pytest.fixture
def ray() -> Ray:
    return Ray()


@pytest.fixture
def release(tmp_path: Path) -> Release:
    folder = tmp_path / "store" / "cat@1.0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        'code: cat\nversion: "1.0"\nactions: {to_task: {entrypoint: plugin.a.ToTask}}'
    )
    return PluginStore(tmp_path / "store", tmp_path / "cache", 10**6).get("cat@1.0")


@pytest.fixture
def submit(ray: Ray, release: Release) -> Callable[..., dict[str, Any]]:
    packages: Any = SimpleNamespace(ensure=lambda release: "gcs://package.zip")

    def call(request: ActionRequest = REQUEST, *, by_sdk: bool = True) -> dict[str, Any]:
        connection: Any = ray
        RayJobs(connection, packages).submit("id", release, request, by_sdk=by_sdk)
        return ray.submissions[-1]

    return call


def test_an_action_of_the_sdk_runs_by_its_own_program(submit: Callable[..., dict[str, Any]]) -> None:
    sent = submit()

    assert (sent["submission_id"], sent["entrypoint"]) == ("id", "python -m synapse_sdk.plugins.entrypoint")
    assert sent["runtime_env"]["working_dir"] == "gcs://package.zip"
    assert sent["runtime_env"]["env_vars"] == {
        "GREETING": "hello",
        "SYNAPSE_ACTION_ENTRYPOINT": "plugin.a.ToTask",
        "SYNAPSE_ACTION_PARAMS": '{"name": "n"}',
        "SYNAPSE_JOB_ID": "42",
        "SYNAPSE_LANGUAGE": "ko",
        "SYNAPSE_ACCESS_TOKEN": "plugin-token",
        "SYNAPSE_PLUGIN_RUN_TENANT": "acme",
        "SYNAPSE_AGENT_URL": "http://agent",
        "SYNAPSE_AGENT_TOKEN": "plugin-token",
    }
    assert sent["entrypoint_num_cpus"] == 2


def test_an_action_of_ours_runs_by_our_program(submit: Callable[..., dict[str, Any]]) -> None:
    sent = submit(by_sdk=False)

    variables = sent["runtime_env"]["env_vars"]
    assert sent["entrypoint"] == "python -m worker.whole_run.entrypoint"
    assert set(variables) == {"GREETING", "SYNAPSE_ACTION_REQUEST"}
    assert ActionRequest.from_json(variables["SYNAPSE_ACTION_REQUEST"]).params == {"name": "n"}


def test_without_a_lesser_token_there_is_none(submit: Callable[..., dict[str, Any]]) -> None:
    access = ClientAccess("http://backend", None, "acme", "http://agent")
    request = ActionRequest("cat@1.0", "to_task", "plugin.a.ToTask", clients=access)

    variables = submit(request)["runtime_env"]["env_vars"]

    assert variables["SYNAPSE_ACCESS_TOKEN"] == ""
    assert not {"SYNAPSE_AGENT_URL", "SYNAPSE_AGENT_TOKEN"} & set(variables)


def test_a_job_that_is_there_already_is_taken_over(ray: Ray, submit: Callable[..., dict[str, Any]]) -> None:
    # Ray answers 500 to an id that it has
    ray.answers["submit_job"] = {"id": "id", "status": 500, "text": "already exists"}
    ray.answers["job_state"] = {"status": "RUNNING", "message": ""}

    assert submit()["submission_id"] == "id"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"id": "id", "status": 400, "text": "bad runtime_env"}, PluginCallError),
        ({"id": "id", "status": 500, "text": "no room"}, PluginHostUnavailableError),
        (RayDriverError("TimeoutError", "no answer"), PluginHostUnavailableError),
    ],
)
def test_a_job_that_ray_does_not_take(
    ray: Ray, submit: Callable[..., dict[str, Any]], answer: Any, error: type[Exception]
) -> None:
    ray.answers["submit_job"] = answer

    with pytest.raises(error):
        submit()


def test_parameters_beyond_an_environment_variable_are_named(submit: Callable[..., dict[str, Any]]) -> None:
    request = ActionRequest("cat@1.0", "to_task", "plugin.a.ToTask", params={"name": "x" * 130_000})

    with pytest.raises(PluginCallError, match=r"the parameters have 130,\d+ bytes"):
        submit(request)
