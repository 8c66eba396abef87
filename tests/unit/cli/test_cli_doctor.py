"""What `doctor` says beside what the clients themselves say."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from worker.cli.main import app
from worker.plugins import PluginHostUnavailableError

EVERYTHING = ["deploy", "to_task", "annotate", "logs", "control"]


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A worker's settings, of whose neighbours only the queue answers."""
    monkeypatch.setattr("worker.cli.doctor._check_queue", lambda _settings: "connected")
    return {
        "SYNAPSE_HOST": "http://127.0.0.1:9",
        "SYNAPSE_ACCESS_TOKEN": "token-of-the-worker",
        "PLUGINS_DIR": str(tmp_path),
        "REDIS_URL": "redis://127.0.0.1:9/0",
        "RAY_ADDRESS": "",
        "COLUMNS": "200",
    }


def doctor(environ: dict[str, str]) -> list[str]:
    done = CliRunner().invoke(app, ["doctor"], env=environ)
    assert done.exit_code == 1, done.output
    return done.stdout.splitlines()


def given_workers(monkeypatch: pytest.MonkeyPatch, *queues: list[str]) -> None:
    answers: Any = {f"worker{n}": [{"name": name} for name in names] for n, names in enumerate(queues)}
    monkeypatch.setattr("worker.cli.doctor.active_queues", lambda: answers)


@pytest.mark.parametrize(
    ("queues", "line"),
    [
        ([], "! workers: 0 answer; nobody listens on deploy, to_task, annotate, logs, control"),
        ([["deploy", "control"], ["to_task"]], "! workers: 2 answer; nobody listens on annotate, logs"),
        ([EVERYTHING], "✓ workers: 1 answers; each queue has a listener"),
    ],
)
def test_queues_on_which_nobody_listens_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], queues: list[list[str]], line: str
) -> None:
    given_workers(monkeypatch, *queues)

    assert line in doctor(environ)


def test_workers_that_cannot_be_asked_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    def refuses() -> None:
        raise RuntimeError("no reply queue")

    monkeypatch.setattr("worker.cli.doctor.active_queues", refuses)

    assert "! workers: could not be asked (RuntimeError)" in doctor(environ)


def test_a_ray_that_does_not_take_the_token_is_told_with_what_to_set(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    # Given a cluster that does not answer
    def refuses(_address: str) -> None:
        raise PluginHostUnavailableError("no answer within 10 s")

    given_workers(monkeypatch, EVERYTHING)
    monkeypatch.setattr("worker.cli.ray_check.check_cluster", refuses)

    # When the doctor looks, then it says so before, and afterwards where to look
    said = doctor({**environ, "RAY_ADDRESS": "127.0.0.1:9"})
    at = said.index("· checking ray …")
    assert said[at + 1] == "✗ ray: no answer within 10 s (see RAY_ADDRESS, RAY_AUTH_MODE, RAY_AUTH_TOKEN)"


def test_a_variable_that_is_no_setting_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    given_workers(monkeypatch, EVERYTHING)

    said = doctor({**environ, "WORKER_TYPO": "1", "WORKER_PLUGINS_HOST": "ray"})

    assert "! settings: WORKER_TYPO is not a setting" in said
    assert "! settings: WORKER_PLUGINS_HOST is not a setting; is WORKER_PLUGIN_HOST meant?" in said
