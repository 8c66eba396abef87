"""The commands `live` and `ready`: probes of the workers of this host, for an orchestrator."""

from typing import Annotated

import typer

from worker.monitoring.worker_states import WorkerState, problems, read_states, states_folder

Name = Annotated[
    str | None, typer.Option("--name", "-n", help="Only the worker of this node name, such as deploy@host.")
]


def live(name: Name = None) -> None:
    """Whether the workers of this host live; exit code 1 when one is to be started anew.

    A worker that has lost its broker lives: to start it anew would not help.
    """
    _report(name, ready=False)


def ready(name: Name = None) -> None:
    """Whether the workers of this host fetch messages; exit code 1 when one does not."""
    _report(name, ready=True)


def _report(name: str | None, *, ready: bool) -> None:
    states = [state for state in read_states(states_folder()) if name in (None, state.name)]
    if found := problems(states, ready=ready):
        for line in found:
            typer.echo(line, err=True)
        raise typer.Exit(1)
    typer.echo(f"{_named(states)}: {'ready' if ready else 'live'}")


def _named(states: list[WorkerState]) -> str:
    return ", ".join(state.name for state in states)
