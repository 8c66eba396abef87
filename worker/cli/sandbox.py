"""The command `sandbox`: everything a worker needs on one machine, without any account."""

import os
import shlex
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape

from worker.cli.console import fail, out

if TYPE_CHECKING:
    from worker.sandbox import Sandbox

JOBS: Final = 100
"""Jobs that the backend knows from the start, to play with: on the real platform somebody else makes them."""

EXAMPLE_PLUGINS = Path(__file__).resolve().parents[2] / "examples" / "plugins"

PluginsDir = Annotated[
    Path,
    typer.Option(
        "--plugins-dir", envvar="PLUGINS_DIR", help="The plugin store.", exists=True, file_okay=False
    ),
]


def sandbox(
    plugins_dir: PluginsDir = EXAMPLE_PLUGINS,
    directory: Annotated[
        Path | None, typer.Option(help="Keep the sandbox's state here; default: a folder that goes with it.")
    ] = None,
    cpus: Annotated[int, typer.Option(help="CPUs that Ray may hand out.", min=1)] = 4,
    workers: Annotated[int, typer.Option(help="Workers to start beside it.", min=0)] = 1,
    env_file: Annotated[
        Path, typer.Option(help="Written with the settings, to be sourced by a shell.")
    ] = Path(".sandbox.env"),
) -> None:
    """Start a Redis, a Ray, an agent and a backend on this machine, and wait for Ctrl-C."""
    # Imported here: the other commands work without the sandbox's packages.
    from worker.sandbox import Sandbox, SandboxError
    from worker.sandbox.digits import seed_digits
    from worker.sandbox.sandbox import AGENT_ID

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with Sandbox(directory, plugins_dir=plugins_dir, num_cpus=cpus, on_progress=say) as running:
            project = seed_digits(running.state, running.files_dir, running.files_url)
            for _ in range(workers):
                running.start_worker()
            _add_jobs(running)
            say(f"logs in {running.directory / 'logs'}")
            say(f"agent {AGENT_ID}; jobs 1 to {JOBS}; project {project.id} holds the digits")
            for release in running.state.rows("SELECT id, code, version FROM plugin_releases ORDER BY id"):
                say(f"pre-processor {release['id']} is {release['code']}@{release['version']}")
            _write_settings(env_file, running.environment())
            try:
                say(f"settings, in another shell: source {env_file}; Ctrl-C ends all")
                stop.wait()
                say("stopping")
            finally:
                env_file.unlink(missing_ok=True)
    except SandboxError as error:
        fail(str(error))


def _add_jobs(running: "Sandbox") -> None:
    from worker.sandbox.sandbox import AGENT_ID

    for id_ in range(1, JOBS + 1):
        if running.state.job(id_) is None:
            running.state.add_job(id=id_, agent=AGENT_ID)


def _write_settings(env_file: Path, environ: Mapping[str, str]) -> None:
    """For this user's eyes only, also where a file of that name lay about: there are tokens in it."""
    env_file.unlink(missing_ok=True)
    text = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environ.items())
    with os.fdopen(os.open(env_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def say(text: str) -> None:
    """One dim line of progress."""
    out.print(f"[dim]· {escape(text)}[/]", highlight=False)
