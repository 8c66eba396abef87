"""Commands in pages can be called as they are written, each rule on a small page."""

from collections.abc import Callable

import pytest

from tools import check_commands
from tools.tree import Tree

MakeTree = Callable[[dict[str, str]], Tree]

MAKEFILE = "demo test: setup\n\tcommand\nsetup:\nVENV := .venv\n"


@pytest.mark.parametrize(
    "command",
    [
        "synapse-worker deploy 7 digits@1.0.0 --agent 1 --follow   # until it runs",
        "source .sandbox.env && synapse-worker status",
        "synapse-worker logs 42 -n 5 | less",
        "PLUGINS_DIR=plugins synapse-worker plugin new words",
        'synapse-worker to-task 8 digits@1.0.0 --params \\\n  \'{"name": "a | b"}\'',
        "celery -A worker worker -Q deploy,to_task --pool threads -l INFO",
        "make demo test SEED=3",
        "curl --unknown http://127.0.0.1",
    ],
)
def test_a_command_that_can_be_called_is_no_finding(command: str, make_tree: MakeTree) -> None:
    # Given a page with the command in a block of shell
    tree = make_tree({"page.md": f"Do this:\n```sh\n{command}\n```\n", "Makefile": MAKEFILE})

    # Then there is nothing to find
    assert check_commands.check(tree) == []


@pytest.mark.parametrize(
    ("command", "mistake"),
    [
        ("synapse-worker deploy 7 digits@1.0.0 --agnet 1", "--agnet"),
        ("synapse-worker restart 7", "there is no command restart"),
        ("synapse-worker dead-letters purge", "there is no purge"),
        ("synapse-worker stop", ""),
        ("synapse-worker stop 7 8", "8 is one argument too many"),
        ("synapse-worker deploy 7", "PLUGIN is missing"),
        ("celery -A worker wroker", "there is no wroker"),
        ("make dmeo", "make has no target dmeo"),
    ],
)
def test_a_command_that_cannot_be_called_is_found(command: str, mistake: str, make_tree: MakeTree) -> None:
    # Given a page that has it in its third line
    tree = make_tree({"page.md": f"\n```sh\n{command}\n```\n", "Makefile": MAKEFILE})

    # Then it is found there, with the reason; but a command's bare name is no call of it
    found = [str(finding) for finding in check_commands.check(tree)]
    assert len(found) == bool(mistake)
    assert all(text.startswith("page.md:3") and mistake in text for text in found)


def test_commands_in_sentences_are_checked_too(make_tree: MakeTree) -> None:
    # Given a sentence with one that exists, one that does not, and a form that stands for several
    commands = (
        "`synapse-worker status 4`, `synapse-worker halt 4`, `synapse-worker dead-letters list | show ID`"
    )
    tree = make_tree({"page.md": f"Call {commands}.\n", "Makefile": MAKEFILE})

    # Then the one that does not exist is found
    assert [finding.message for finding in check_commands.check(tree)] == [
        "`synapse-worker halt 4` does not run: there is no command halt"
    ]
