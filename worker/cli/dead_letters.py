"""Commands for messages that could not be accepted."""

import json
from datetime import datetime
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from redis.exceptions import RedisError
from rich.table import Table

from shared import DeployMessage, Message, StopMessage, TailLogsMessage, ToTaskMessage
from worker.cli.console import (
    DEFAULT_REDIS_URL,
    BrokerUrl,
    RedisUrl,
    cell,
    connect,
    fail,
    json_for_terminal,
    out,
    publish,
)
from worker.runs.store import RunStore
from worker.workflow.dead_letters import DeadLetter, DeadLetters

app = typer.Typer(help="Messages that could not be accepted.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(help="The dead letter's id, as `list` shows it.", metavar="ID")]

MESSAGES: dict[str, type[Message]] = {
    model.task: model for model in (DeployMessage, ToTaskMessage, TailLogsMessage, StopMessage)
}


@app.command("list")
def list_letters(redis_url: RedisUrl = DEFAULT_REDIS_URL) -> None:
    """All dead letters, oldest first."""
    table = Table(box=None, pad_edge=False)
    for name in ("id", "time", "task", "job", "reason"):
        # What identifies a letter stays on one line; what is long is folded, never cut.
        table.add_column(name, no_wrap=name in ("id", "time"), overflow="fold")
    for letter in DeadLetters(connect(redis_url)).all():
        texts = (_local(letter.time), letter.task, letter.job or "", letter.reason)
        table.add_row(letter.id, *(cell(text) for text in texts))
    out.print(table if table.row_count else "no dead letters")


@app.command()
def show(id_: Id, redis_url: RedisUrl = DEFAULT_REDIS_URL) -> None:
    """One dead letter whole, as JSON; its body is a text where it is no JSON itself."""
    letter = _letter(DeadLetters(connect(redis_url)), id_)
    content = {
        "task": letter.task,
        "reason": letter.reason,
        "time": letter.time,
        "body": _legible(letter.body),
    }
    # Not through rich, which would fold long lines in the middle of a body.
    typer.echo(json_for_terminal(content))


@app.command()
def replay(id_: Id, redis_url: RedisUrl = DEFAULT_REDIS_URL, broker_url: BrokerUrl = None) -> None:
    """Send a dead letter's message again; the job that it had failed is opened again."""
    redis = connect(redis_url)
    letters = DeadLetters(redis)
    letter = _letter(letters, id_)
    message = _message(letter)
    opens_job = isinstance(message, DeployMessage | ToTaskMessage)
    if opens_job and RunStore(redis).exists(message.job):
        fail(f"job {message.job} has a run already: a replay would start nothing")
    if opens_job and not letters.replay(message.job):
        fail(
            f"job {message.job} was not set FAILED because of this message: a replay would not open it",
            hint="Either the job was over before, or the backend has not been told yet.",
        )
    try:
        publish(message, broker_url, redis_url)
    except (typer.Exit, RedisError):
        if opens_job:
            letters.mark_rejected(message.job)
        raise
    letters.drop(letter.id)
    # No more than that: a worker may refuse it again.
    out.print(f"published again: {letter.task}, job {message.job}", markup=False)
    if opens_job:
        out.print(f"`synapse-worker watch {message.job}` shows what becomes of it", markup=False)


@app.command()
def drop(id_: Id, redis_url: RedisUrl = DEFAULT_REDIS_URL) -> None:
    """Throw one dead letter away."""
    if not DeadLetters(connect(redis_url)).drop(id_):
        _unknown(id_)
    out.print(f"dropped {id_}", markup=False)


def _local(time: str) -> str:
    """Local time, to the second; as it stands where it is none."""
    try:
        return datetime.fromisoformat(time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return time


def _legible(body: str) -> Any:
    """The body as JSON where that shows all of it; else the text, such as of one that says a key twice."""
    try:
        parsed = json.loads(body)
        spellings = (json.dumps(parsed), json.dumps(parsed, ensure_ascii=False))
    except (ValueError, RecursionError):
        return body
    return parsed if body in spellings else body


def _letter(letters: DeadLetters, id_: str) -> DeadLetter:
    letter = letters.get(id_)
    if letter is None:
        _unknown(id_)
    return letter


def _unknown(id_: str) -> NoReturn:
    fail(f"there is no dead letter {id_}", hint="`synapse-worker dead-letters list` shows the ids.")


def _message(letter: DeadLetter) -> Message:
    """The letter's message, if a worker would take it now; ends the command otherwise."""
    model = MESSAGES.get(letter.task)
    if model is None:
        known = ", ".join(MESSAGES)
        fail(f"dead letter {letter.id} cannot be replayed: its task is none of {known}")
    kwargs = letter.arguments()
    if kwargs is None:
        fail(f"dead letter {letter.id} cannot be replayed: its body is no task message with named arguments")
    try:
        return model.model_validate(kwargs)
    except ValidationError as error:
        wrong = ", ".join(sorted({".".join(str(part) for part in each["loc"]) for each in error.errors()}))
        fail(f"dead letter {letter.id} cannot be replayed: it would be refused again ({wrong})")
