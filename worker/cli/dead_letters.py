"""The commands `dead-letters …`: messages that could not be accepted."""

import json
import re
from datetime import datetime
from typing import Annotated, Final, NoReturn

import typer
from rich.table import Table

from shared import DeployMessage, ToTaskMessage
from worker.cli.console import (
    DEFAULT_REDIS_URL,
    AsJson,
    BrokerUrl,
    Priority,
    RedisUrl,
    connect,
    err,
    fail,
    out,
    print_json,
    print_table,
    publish,
    table_cell,
    terminal_json,
)
from worker.platform import redact, redact_value
from worker.platform.secret_registry import MASK
from worker.workflow.dead_letters import DeadLetter, DeadLetters, ReplayError, publish_again

app = typer.Typer(add_completion=False, help="Messages that could not be accepted.", no_args_is_help=True)

DeadLetterId = Annotated[str, typer.Argument(help="The dead letter's id, as `list` shows it.", metavar="ID")]


_KEYS: Final = re.compile(
    r"\b(?:sk-[\w-]{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_\w{20,}|AKIA[0-9A-Z]{16}"
    r"|AIza[\w-]{30,}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?"
)
"""The forms of keys that services give out, and of JSON web tokens."""


@app.command("list")
def list_dead_letters(as_json: AsJson = False, redis_url: RedisUrl = DEFAULT_REDIS_URL) -> None:
    """All dead letters, oldest first."""
    letters, names = DeadLetters(connect(redis_url)).all(), ("id", "time", "task", "job", "reason")
    if as_json:
        print_json([{name: getattr(letter, name) for name in names} for letter in letters])
        return
    table = Table(box=None, pad_edge=False)
    for name in names:
        # The id and the time stay on one line, to be copied; long texts are wrapped and never cut.
        table.add_column(name, no_wrap=name in ("id", "time"), overflow="fold")
    for letter in letters:
        texts = (_local_time(letter.time), letter.task, letter.job or "", letter.reason)
        table.add_row(letter.id, *(table_cell(text) for text in texts))
    print_table(table, empty="no dead letters")


@app.command()
def show(
    id_: DeadLetterId,
    redis_url: RedisUrl = DEFAULT_REDIS_URL,
    unmasked: Annotated[bool, typer.Option("--unmasked", help="Show also what looks like a key.")] = False,
) -> None:
    """One dead letter, as JSON; the body is shown as a string if it is not JSON.

    What looks like a key is masked on the terminal; the dead letter keeps it.
    """
    letter = _find(DeadLetters(connect(redis_url)), id_)
    body = _readable_body(letter.body)
    shown = body if unmasked else _masked(body)
    if shown != body:
        err.print("[yellow]![/] what looks like a key is masked: `--unmasked` shows it", highlight=False)
        err.print("  A message holds no secrets: let its publisher leave the key out, and renew it.")
    content = {"task": letter.task, "reason": letter.reason, "time": letter.time, "body": shown}
    # Not printed by rich, which would wrap long lines in the middle of a body.
    typer.echo(terminal_json(content))


@app.command()
def replay(
    id_: DeadLetterId,
    priority: Priority = None,
    redis_url: RedisUrl = DEFAULT_REDIS_URL,
    broker_url: BrokerUrl = None,
) -> None:
    """Send a dead letter's message again; the job that it had failed is opened again."""
    redis = connect(redis_url)
    letter = _find(DeadLetters(redis), id_)
    try:
        message = publish_again(
            redis, letter, lambda message: publish(message, broker_url, redis_url, priority=priority)
        )
    except ReplayError as error:
        fail(str(error), hint=error.hint)
    # Published does not mean accepted: a worker may reject the message again.
    out.print(f"published again: {letter.task}, job {message.job}", markup=False)
    if isinstance(message, DeployMessage | ToTaskMessage):
        out.print(f"`synapse-worker watch {message.job}` shows what becomes of it", markup=False)


@app.command()
def drop(id_: DeadLetterId, redis_url: RedisUrl = DEFAULT_REDIS_URL) -> None:
    """Throw one dead letter away."""
    if not DeadLetters(connect(redis_url)).drop(id_):
        _fail_unknown(id_)
    out.print(f"dropped {id_}", markup=False)


def _local_time(time: str) -> str:
    """The time in the local time zone, to the second; unchanged when it cannot be parsed."""
    try:
        return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return time


def _readable_body(body: str) -> object:
    """The body as JSON, or as text when parsing would lose something, such as a repeated key."""
    try:
        parsed = json.loads(body)
        spellings = (json.dumps(parsed), json.dumps(parsed, ensure_ascii=False))
    except (ValueError, RecursionError):
        return body
    return parsed if body in spellings else body


def _masked(value: object) -> object:
    """The same without what looks like a key, by its own form or by the name that it has."""
    try:
        return _masked_part(value)
    except RecursionError:
        return _KEYS.sub(MASK, redact(json.dumps(value)))


def _masked_part(value: object) -> object:
    if isinstance(value, str):
        return _KEYS.sub(MASK, redact(value))
    if isinstance(value, list):
        return [_masked_part(each) for each in value]
    if isinstance(value, dict):
        return {name: _masked_part(_masked_by_name(name, each)) for name, each in value.items()}
    return value


def _masked_by_name(name: str, value: object) -> object:
    is_secret = isinstance(value, str) and redact_value({name: value}) != {name: redact(value)}
    return MASK if is_secret else value


def _find(letters: DeadLetters, id_: str) -> DeadLetter:
    letter = letters.get(id_)
    if letter is None:
        _fail_unknown(id_)
    return letter


def _fail_unknown(id_: str) -> NoReturn:
    fail(f"there is no dead letter {id_}", hint="`synapse-worker dead-letters list` shows the ids.")
