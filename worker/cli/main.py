"""The list of commands. `--help` shows it without importing Redis, Celery and Ray, which takes seconds."""

import os
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from worker.cli.interrupts import exit_on_interrupt

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
    "retry": ("publish:retry", "Annotate exactly the failed tasks of an ended run, as a new job."),
    "status": ("runs:status", "Show the state of a run, or all live runs."),
    "runs": ("runs:app", "Runs: those that are live, and those that have ended."),
    "watch": ("runs:watch", "Show a run's progress above its log until it ends."),
    "logs": (
        "runs:logs",
        "Show the log of a job: the run's own messages, and every log that is relayed for it.",
    ),
    "stop": ("publish:stop", "Stop a run, even while its message is still queued."),
    "console": (
        "live_page:console",
        "Serve the live page: runs, logs, waiting lists, deployments, dead letters and queues.",
    ),
    "rollback": ("cluster:rollback", "Let an application run again what it ran before its last update."),
    "undeploy": ("cluster:undeploy", "Remove an application from Ray Serve, and what is kept of it."),
    "doctor": (
        "checks.doctor:doctor",
        "Check the environment that a worker would start in; exit code 1 when something is wrong.",
    ),
    "live": (
        "checks.probes:live",
        "Whether the workers of this host live; exit code 1 when one is to be started anew.",
    ),
    "ready": (
        "checks.probes:ready",
        "Whether the workers of this host fetch messages; exit code 1 when one does not.",
    ),
    "dead-letters": ("dead_letters:app", "Messages that could not be accepted."),
    "plugin": ("plugin:app", "Releases in the plugin store."),
}
"""By command: where it is defined in this package, and its help in the list of commands."""


class LazyCommandGroup(TyperGroup):
    """Imports a command when it runs. Whichever command loses Redis ends with one clear line."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, (_, help_) in COMMANDS.items():
            self.add_command(TyperCommand(name, help=help_))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Replace the entry of the list by the imported command."""
        name, command, rest = super().resolve_command(ctx, args)
        # The probes look for workers by the variables as they are, and import little.
        if name not in ("live", "ready"):
            _read_setting_files()
        return name, load_command(name) if name in COMMANDS else command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the requested command."""
        try:
            return super().invoke(ctx)
        except _redis_error() as error:
            from worker.cli.console import fail_on_redis_error

            fail_on_redis_error(error)


def _read_setting_files() -> None:
    """Put the settings that stand in files into the environment, which the commands read."""
    from worker.setting_values import read_setting_files

    if mistakes := read_setting_files(os.environ):
        from worker.cli.console import fail

        fail("\n".join(mistakes))


def load_command(name: str) -> Any:
    """Import the command `name`."""
    import_path, _ = COMMANDS[name]
    module, _, attribute = import_path.partition(":")
    with exit_on_interrupt():
        found = getattr(import_module(f"worker.cli.{module}"), attribute)
    if not isinstance(found, typer.Typer):
        single_command = typer.Typer(add_completion=False)
        single_command.command(name)(found)
        found = single_command
    command = typer.main.get_command(found)
    command.name = name
    return command


def _redis_error() -> type[Exception]:
    from redis.exceptions import RedisError

    error_type: type[Exception] = RedisError
    return error_type


def _show_version(requested: bool) -> None:
    if requested:
        typer.echo(f"synapse-worker {version('synapse-worker')}")
        raise typer.Exit


app = typer.Typer(
    cls=LazyCommandGroup,
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
    """The options of `synapse-worker` itself."""


def main() -> None:
    """Entry point of the command `synapse-worker`."""
    app()
