"""The list of commands, which is shown without importing the commands."""

from importlib.metadata import version

import fakeredis
import pytest
from typer.testing import CliRunner

from shared.channels import job_key
from tests.unit.cli.command_line import run_failing
from worker.cli.main import COMMANDS, app, load_command


@pytest.mark.parametrize("name", COMMANDS)
def test_list_shows_the_help_of_each_command(name: str) -> None:
    assert load_command(name).help.partition("\n")[0] == COMMANDS[name][1]


def test_all_commands_are_listed() -> None:
    listed = CliRunner().invoke(app, ["--help"]).stdout

    assert all(name in listed for name in COMMANDS)


def test_mistyped_command_suggests_the_right_one() -> None:
    assert "Did you mean" in CliRunner().invoke(app, ["statu"]).stderr


def test_version_is_that_of_the_package() -> None:
    assert (
        CliRunner().invoke(app, ["--version"]).stdout.strip() == f"synapse-worker {version('synapse-worker')}"
    )


def test_error_of_redis_is_shown(redis_server: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    fakeredis.FakeRedis(server=redis_server).set(job_key("5"), "no hash")

    assert run_failing("status", "5").startswith("error: Redis rejects the command: WRONGTYPE")
