"""The command's tree."""

from typing import Any

import typer
from redis.exceptions import RedisError
from typer.core import TyperGroup

from worker.cli import dead_letters, plugin
from worker.cli.console import lost
from worker.cli.demo import demo
from worker.cli.doctor import doctor
from worker.cli.logs import logs
from worker.cli.publish import deploy, stop, to_task
from worker.cli.sandbox import sandbox
from worker.cli.status import status, watch


class Commands(TyperGroup):
    """The commands. Redis may go away under each of them, which is one clear line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except RedisError as error:
            lost(error)


app = typer.Typer(
    cls=Commands,
    name="synapse-worker",
    help="Deploys models on Ray Serve and pre-annotates tasks. A worker starts as `celery -A worker worker`.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
for command in (demo, sandbox, deploy, status, watch, logs, stop, doctor):
    app.command()(command)
app.command("to-task")(to_task)
app.add_typer(dead_letters.app, name="dead-letters")
app.add_typer(plugin.app, name="plugin")


def main() -> None:
    """Entry point of the command `synapse-worker`."""
    app()
