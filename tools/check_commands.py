"""Commands in pages can be called as they are written: they exist, and take these arguments and options.

    python -m tools.check_commands

Reads the blocks of shell and the code within sentences of the Markdown pages, except for the history in
CHANGELOG.md. Nothing is run: `synapse-worker` and `celery -A worker` parse their arguments, and a target of
`make` is one of the Makefile.
"""

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from tools.tree import Finding, Tree, parser_of, report

_HISTORY = "CHANGELOG.md"
_SHELL = ("sh", "bash", "shell")
_FENCE = re.compile(r"^\s*```(\w*)")
_INLINE = re.compile(r"`((?:synapse-worker|make|celery -A worker) [^`]+)`")
_TARGET = re.compile(r"^([a-z][\w -]*):(?!=)", re.MULTILINE)
_END = ("|", "||", "&&", ";", "&", ">", ">>", "<", "2>")
"""Where the arguments of a command end."""
_FORMS = ("|", "…", "...", "[")
"""In a sentence, what stands for several commands at once or leaves something out."""


def check(tree: Tree) -> list[Finding]:
    """Findings in all pages of a tree."""
    pages = [path for path in tree.files if path.endswith(".md") and path != _HISTORY]
    return [finding for page in pages for finding in check_page(tree, page)]


def check_page(tree: Tree, page: str) -> list[Finding]:
    """Commands of one page that cannot be called so."""
    findings = []
    for line, text in commands_of(tree.read(page)):
        mistake = mistake_in(tree, text)
        if mistake:
            findings.append(Finding(page, line, f"`{text}` does not run: {mistake}"))
    return findings


def commands_of(page: str) -> Iterator[tuple[int, str]]:
    """The commands of a page, each with the number of its first line."""
    language, begun, pending = None, 0, ""
    for number, line in enumerate(page.splitlines(), 1):
        fence = _FENCE.match(line)
        if fence:
            language = fence[1] if language is None else None
        elif language in _SHELL:
            begun = begun if pending else number
            pending += line
            if pending.endswith("\\"):
                pending = pending[:-1] + " "
                continue
            yield from ((begun, command) for command in _split(pending))
            pending = ""
        elif language is None:
            for text in _INLINE.findall(line):
                if not any(form in text for form in _FORMS):
                    yield number, text


def _split(line: str) -> Iterator[str]:
    """The commands of one line of shell."""
    words = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    words.whitespace_split = True
    command: list[str] = []
    for word in [*words, ";"]:
        if word not in _END:
            command.append(word)
            continue
        if command:
            yield shlex.join(command)
        command = []


def mistake_in(tree: Tree, text: str) -> str | None:
    """What is wrong with a command of this project; None for a sound one, and for commands of others."""
    words = shlex.split(text)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    match words:
        case ["make", *targets]:
            return _mistake_in_make(tree, targets)
        case ["synapse-worker", *arguments]:
            return _mistake_in_worker(arguments)
        case ["celery", "-A", "worker", *arguments]:
            from celery.bin.celery import celery

            return _mistake_in(celery, arguments)
    return None


def _mistake_in_make(tree: Tree, words: Sequence[str]) -> str | None:
    known = {name for names in _TARGET.findall(tree.read("Makefile")) for name in names.split()}
    unknown = [word for word in words if "=" not in word and not word.startswith("-") and word not in known]
    return f"make has no target {unknown[0]}" if unknown else None


def _mistake_in_worker(arguments: Sequence[str]) -> str | None:
    from worker.cli.main import COMMANDS, load_command

    name = next(iter(arguments), "")
    if name.startswith("-"):
        return None
    if name not in COMMANDS:
        return f"there is no command {name}"
    return _mistake_in(load_command(name), arguments[1:])


def _mistake_in(command: Any, arguments: Sequence[str]) -> str | None:
    """Parse the arguments alone: neither types nor files are looked at, and nothing is called."""
    context = click.Context(command, resilient_parsing=True)
    members = getattr(command, "commands", None)
    parser = command.make_parser(context)
    if members is not None:
        parser.allow_interspersed_args = False
    try:
        _, rest, _ = parser.parse_args(list(arguments))
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return str(error.format_message())
    if "--help" in arguments:
        return None
    if members is not None:
        if not rest:
            return None
        return _mistake_in(members[rest[0]], rest[1:]) if rest[0] in members else f"there is no {rest[0]}"
    return f"{rest[0]} is one argument too many" if rest else _missing_argument(command, arguments)


def _missing_argument(command: Any, arguments: Sequence[str]) -> str | None:
    context = click.Context(command, resilient_parsing=True)
    given, _, _ = command.make_parser(context).parse_args(list(arguments))
    if not arguments:  # a sentence that only names the command
        return None
    needed = [each for each in command.params if each.required and not each.envvar]
    missing = [each.name for each in needed if given.get(each.name) is None]
    return f"{missing[0].upper()} is missing" if missing else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the tracked tree."""
    parser_of("check_commands", __doc__).parse_args(arguments)
    return report(check(Tree.tracked()), "commands")


if __name__ == "__main__":
    sys.exit(main())
