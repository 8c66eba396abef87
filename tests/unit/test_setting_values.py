"""Settings in files, for workers and for commands."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from worker.cli.main import app
from worker.monitoring.worker_states import states_folder
from worker.setting_values import read_setting_files
from worker.settings import (
    Settings,
    SettingsError,
    environment_setting,
    load_settings,
    unknown_variables,
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("SYNAPSE_HOST", "https://backend.example")
    monkeypatch.setenv("SYNAPSE_ACCESS_TOKEN_FILE", str(write(tmp_path, "token", "hush-hush\n")))
    monkeypatch.setenv("PLUGINS_DIR", str(tmp_path))


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def mistakes() -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings()
    return str(caught.value).splitlines()


def test_a_secret_is_read_from_its_file_and_is_masked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Given a required token and a URL with a password, each in a file that ends with a line break
    url = "redis://user:pass-word@redis:6379/1"
    monkeypatch.setenv("REDIS_URL_FILE", str(write(tmp_path, "redis", f"{url}\n")))

    settings = load_settings()

    assert settings.synapse_access_token.get_secret_value() == "hush-hush"
    assert settings.redis_url == settings.broker_url == url
    assert {"hush-hush", "pass-word"} <= set(settings.secrets())


OF_OPENTELEMETRY = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_HEADERS")
NAMES = [name.upper() for name in Settings.model_fields if name.upper() not in OF_OPENTELEMETRY]


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_may_name_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "absent"))

    why = f"{name} cannot be read from the file that {name}_FILE names: No such file or directory"
    assert mistakes() == [why]


@pytest.mark.parametrize(
    ("content", "why"),
    [(b" \n", "it is empty"), (b"\xff\xfe", "it is not UTF-8"), (b"x" * 70_000, "it is longer than 64 KB")],
)
def test_a_file_that_is_no_setting_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes, why: str
) -> None:
    monkeypatch.setenv("REDIS_URL_FILE", str(write(tmp_path, "redis", content)))

    assert mistakes() == [f"REDIS_URL cannot be read from the file that REDIS_URL_FILE names: {why}"]


def test_a_wrong_value_in_a_file_is_a_mistake_like_any(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REDIS_URL_FILE", str(write(tmp_path, "redis", "http://pass-word")))

    (line,) = mistakes()
    assert line.startswith("REDIS_URL must start with")
    assert "pass-word" not in line


def test_a_setting_and_its_file_contradict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNAPSE_ACCESS_TOKEN", "another")

    why = "SYNAPSE_ACCESS_TOKEN is set, and so is SYNAPSE_ACCESS_TOKEN_FILE: remove one of them"
    assert mistakes() == [why]


def test_one_setting_alone_is_read_from_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORKER_DEPLOY_TIMEOUT_SECONDS_FILE", str(write(tmp_path, "seconds", "12")))
    assert environment_setting("worker_deploy_timeout_seconds") == 12

    monkeypatch.setenv("WORKER_DEPLOY_TIMEOUT_SECONDS_FILE", str(tmp_path / "absent"))
    with pytest.raises(SettingsError, match=r"^WORKER_DEPLOY_TIMEOUT_SECONDS cannot be read"):
        environment_setting("worker_deploy_timeout_seconds")


def test_the_name_of_a_file_is_no_unknown_variable() -> None:
    environ = {"WORKER_AGENT_FILE": "/x", "WORKER_AGNET_FILE": "/x"}

    assert unknown_variables(environ) == {"WORKER_AGNET_FILE": "WORKER_AGENT_FILE"}


def test_commands_read_the_files_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Given an address in a file, at which no Redis is
    monkeypatch.setenv("REDIS_URL_FILE", str(write(tmp_path, "redis", "redis://127.0.0.1:1/0")))
    # Whose name is gone from the environment after the command, as its text is
    monkeypatch.setattr(os, "environ", dict(os.environ))

    result = CliRunner().invoke(app, ["status"])

    assert result.exit_code == 1
    assert "Redis at redis://127.0.0.1:1/0 does not answer" in result.output


def test_a_command_says_which_file_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REDIS_URL_FILE", str(tmp_path / "absent"))
    monkeypatch.setattr(os, "environ", dict(os.environ))

    result = CliRunner().invoke(app, ["status"])

    assert result.exit_code == 1
    assert "REDIS_URL cannot be read from the file that REDIS_URL_FILE names" in result.output


def test_files_of_other_programs_stay_as_they_are(tmp_path: Path) -> None:
    environ = {"POSTGRES_PASSWORD_FILE": str(tmp_path / "absent"), "SSL_CERT_FILE": "/etc/ssl/ca.pem"}

    assert read_setting_files(environ) == []
    assert sorted(environ) == ["POSTGRES_PASSWORD_FILE", "SSL_CERT_FILE"]


def test_probes_know_installations_by_the_names_of_files() -> None:
    one, other = ({"REDIS_URL_FILE": f"/run/{name}"} for name in ("one", "other"))

    assert states_folder(one) == states_folder(dict(one)) != states_folder(other)
