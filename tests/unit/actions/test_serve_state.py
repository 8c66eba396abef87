"""What an author reads of a failed deployment, however long the error is."""

import time
from typing import Any

import pytest

from worker.actions.serve_state import (
    MAX_CHARS,
    MAX_READ_LINES,
    clean_reason,
    interpret_serve_status,
    live_applications,
)
from worker.platform import register_secrets

FRAME = '  File "{file}", line 3, in __init__'


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "/",
        "/a",
        " ",
        "\t x",
        "(",
        "/_ray_pkg_",
        "/_ray_pkg_a/",
        "/site-packages/",
        "pid=",
        " (pid=1,",
        "1.",
        "1.1.1.1:",
        "\x1b[",
        "\x1b[1;",
        "iVBORw0KGgo/9j4+",
        'File "/a',
        "\n",
        "\n  /",
        "\n" + "/" * 5_000,
        "\n" + FRAME.format(file="/a" * 1_000),
        "\n" + FRAME.format(file="/_ray_pkg_a/" * 100),
    ],
)
def test_a_megabyte_of_an_error_is_reduced_quickly(unit: str) -> None:
    message = f"ValueError: {unit * (1_000_000 // len(unit))} end"
    began = time.thread_time()

    explained = clean_reason(message)

    assert time.thread_time() - began < 3
    assert len(explained) <= MAX_CHARS


def test_long_line_is_shown_from_its_start() -> None:
    explained = clean_reason(
        f"{FRAME.format(file='/x/_ray_pkg_0a/plugin.py')}\nValueError: cannot read {'x' * 9_000}"
    )

    assert explained.startswith("ValueError: cannot read xxx")
    assert len(explained) == MAX_CHARS


def test_last_of_very_many_lines_are_read() -> None:
    assert clean_reason("\n".join(["x"] * 2 * MAX_READ_LINES + ["ValueError: no weights"])).endswith(
        "no weights"
    )


def test_secret_across_the_end_of_the_text_is_masked() -> None:
    register_secrets(["private-secret"])

    explained = clean_reason(f"ValueError: {'x' * (MAX_CHARS - 20)} private-secret {'x' * 9_000}")

    assert "private" not in explained


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            FRAME.format(file="/tmp/ray/s_1/_ray_pkg_0a1b/plugin/serve.py"),
            FRAME.format(file="plugin/serve.py"),
        ),
        (FRAME.format(file="/x/_ray_pkg_0a1b/v/site-packages/m.py"), FRAME.format(file="m.py")),
        ("no /x/lib/site-packages/m.py nor /y/site-packages/n.py", "no m.py nor n.py"),
        ("ValueError: /data/weights.bin is gone", "ValueError: /data/weights.bin is gone"),
        ("died, SERVE   (pid=225, ip=127.0.0.2) at 10.0.0.1:80 now", "died, SERVE at  now"),
    ],
)
def test_folders_processes_and_addresses_are_removed(line: str, shown: str) -> None:
    assert clean_reason(line) == shown


TRACE = """The deployment failed to start 3 times in a row. Error:
Exception when allocating Replica(id='z8', deployment='B', app='cat@1.0'):
Traceback (most recent call last):
  File "/x/.venv/lib/python3.11/site-packages/ray/_private/worker.py", line 1055, in get_objects
    raise value
ray.exceptions.ActorDiedError: The actor died, \x1b[36mray::SERVE\x1b[39m (pid=225, ip=127.0.0.2)
  File "/usr/lib/python3.11/concurrent/futures/_base.py", line 456, in result
    return self.__get_result()
           ^^^^^^^^^^^^^^^^^^^
  File "/tmp/ray/s_1/working_dir_files/_ray_pkg_0a1b/plugin/serve.py", line 3, in __init__
    raise ValueError("the weights are gone")
ValueError: the weights are gone at 10.0.0.1:80
"""


def test_status_is_one_of_three_buckets_with_a_reason() -> None:
    def state(status: str, message: str = "") -> dict[str, Any]:
        return {"status": status, "message": "app", "deployments": {"B": {"status": "x", "message": message}}}

    assert interpret_serve_status(None) == ("pending", None, "")
    assert interpret_serve_status({}) == ("pending", None, "")
    assert interpret_serve_status(state("RUNNING", "old")) == ("running", "RUNNING", "")
    assert interpret_serve_status(state("DEPLOYING")) == ("pending", "DEPLOYING", "")
    assert interpret_serve_status(state("UNHEALTHY")) == ("failed", "UNHEALTHY", "app")
    bucket, status, reason = interpret_serve_status(state("DEPLOY_FAILED", TRACE))
    assert (bucket, status) == ("failed", "DEPLOY_FAILED")
    assert reason.splitlines() == [
        '  File "plugin/serve.py", line 3, in __init__',
        '    raise ValueError("the weights are gone")',
        "ValueError: the weights are gone at",
    ]


@pytest.mark.parametrize(
    ("applications", "proxies", "known"),
    [
        ({}, [], None),
        ({}, ["STARTING"], None),
        ({}, ["HEALTHY", "UNHEALTHY"], None),
        ({}, ["HEALTHY"], {}),
        ({"a": {}}, ["STARTING"], {"a": {}}),
        ({"a": {}}, [], {"a": {}}),
    ],
)
def test_no_application_is_known_only_once_serve_is_up(
    monkeypatch: pytest.MonkeyPatch, applications: dict[str, Any], proxies: list[str], known: object
) -> None:
    class Client:
        def get_serve_details(self) -> dict[str, Any]:
            details = {str(number): {"status": status} for number, status in enumerate(proxies)}
            return {"applications": applications, "proxies": details}

    monkeypatch.setattr("worker.actions.serve_state.forget_lost_controller", lambda: None)
    monkeypatch.setattr("ray.serve.context._get_global_client", lambda **_: Client())
    assert live_applications() == known


def test_no_application_is_known_while_serve_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.actions.serve_state.forget_lost_controller", lambda: None)
    monkeypatch.setattr("ray.serve.context._get_global_client", lambda **_: None)
    assert live_applications() is None
