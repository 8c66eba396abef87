"""The command's tree, which is shown without loading what the commands need: Redis, Celery, clients, Ray."""

from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from worker.cli.interrupts import quiet

COMMANDS: Final = {
    "demo": (
        "demo:demo",
        "Deploy a digits classifier on Ray Serve and pre-annotate 899 images with it, then from files.",
    ),
    "sandbox": (
        "sandbox:sandbox",
        "Start a Redis, a Ray, an agent, a backend and a worker on this machine, and wait for Ctrl-C.",
    ),
    "deploy": ("publish:deploy", "Put a plugin's model online on Ray Serve."),
    "to-task": ("publish:to_task", "Pre-annotate the tasks of a project."),
    "status": ("runs:status", "Where a run stands, or all live runs."),
    "watch": ("runs:watch", "Show a run's progress above its log until it ends."),
    "logs": (
        "runs:logs",
        "Show the log of a job: the run's own messages, and every log that is followed for it.",
    ),
    "stop": ("publish:stop", "End a run, also one that has not been read yet."),
    "doctor": (
        "doctor:doctor",
        "Check the environment that a worker would start in; exit code 1 when something is wrong.",
    ),
    "dead-letters": ("dead_letters:app", "Messages that could not be accepted."),
    "plugin": ("plugin:app", "Releases in the plugin store."),
}
"""Where each is, in this package, and what the list of commands says of it."""


class Commands(TyperGroup):
    """Commands that are loaded when they run. Redis may go away under each, which is one clear line."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (_, help_) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=help_))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command itself in place of its entry in the list."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in COMMANDS else command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except _redis_error() as error:
            from worker.cli.console import lost

            lost(error)


def load(name: str) -> Any:
    """The command of that name, with all that it needs."""
    place, _ = COMMANDS[name]
    module, _, attribute = place.partition(":")
    with quiet():
        found = getattr(import_module(f"worker.cli.{module}"), attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False)
        alone.command(name)(found)
        found = alone
    command = typer.main.get_command(found)
    command.name = name
    return command


def _redis_error() -> type[Exception]:
    from redis.exceptions import RedisError

    found: type[Exception] = RedisError
    return found


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"synapse-worker {version('synapse-worker')}")
        raise typer.Exit


app = typer.Typer(
    cls=Commands,
    name="synapse-worker",
    help="Deploys models on Ray Serve and pre-annotates tasks. A worker starts as `celery -A worker worker`.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """What belongs to no command."""


def main() -> None:
    """Entry point of the command `synapse-worker`."""
    app()
