"""Commands for messages that could not be accepted."""

import json
from typing import Annotated

import typer
from rich.table import Table

from shared.channels import DEAD_LETTERS
from worker.cli.console import DEFAULT_REDIS_URL, RedisUrl, connect, fail, out

app = typer.Typer(help="Messages that could not be accepted.", no_args_is_help=True)

Id = Annotated[str, typer.Argument(help="The dead letter's id, as `list` shows it.", metavar="ID")]


@app.command("list")
def list_letters(redis_url: RedisUrl = DEFAULT_REDIS_URL) -> None:
    """All dead letters, oldest first."""
    entries = connect(redis_url).xrange(DEAD_LETTERS)
    table = Table("id", "time", "task", "reason")
    for id_, letter in entries:
        table.add_row(id_, letter["time"], letter["task"], letter["reason"])
    out.print(table if entries else "no dead letters")


@app.command()
def show(id_: Id, redis_url: RedisUrl = DEFAULT_REDIS_URL) -> None:
    """One dead letter whole, as JSON."""
    entries = connect(redis_url).xrange(DEAD_LETTERS, id_, id_)
    if not entries:
        fail(f"no dead letter {id_}")
    out.print_json(json.dumps(entries[0][1]))


@app.command()
def drop(id_: Id, redis_url: RedisUrl = DEFAULT_REDIS_URL) -> None:
    """Throw one dead letter away."""
    if not connect(redis_url).xdel(DEAD_LETTERS, id_):
        fail(f"no dead letter {id_}")
    out.print(f"dropped {id_}")
