"""The command's tree."""

import typer

from worker.cli import dead_letters, plugin
from worker.cli.demo import demo
from worker.cli.doctor import doctor
from worker.cli.logs import logs
from worker.cli.publish import deploy, stop, to_task
from worker.cli.sandbox import sandbox
from worker.cli.status import status, watch

app = typer.Typer(
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
