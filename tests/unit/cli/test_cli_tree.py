"""The list of commands, which knows them without loading them."""

from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from worker.cli.main import COMMANDS, app, load_command


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_of_a_command_what_it_says_itself(name: str) -> None:
    assert load_command(name).help.partition("\n")[0] == COMMANDS[name][1]


def test_all_commands_are_listed() -> None:
    listed = CliRunner().invoke(app, ["--help"]).stdout

    assert all(name in listed for name in COMMANDS)


def test_a_mistyped_command_is_told_which_one_was_meant() -> None:
    assert "Did you mean" in CliRunner().invoke(app, ["statu"]).stderr


def test_the_version_is_the_packages() -> None:
    assert (
        CliRunner().invoke(app, ["--version"]).stdout.strip() == f"synapse-worker {version('synapse-worker')}"
    )
