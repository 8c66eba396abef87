"""The command `sandbox`: everything a worker needs on one machine, without any account."""

import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape

from worker.cli.console import INTERRUPTED, fail, out
from worker.cli.interrupts import interruptible
from worker.cli.progress import Heartbeat

if TYPE_CHECKING:
    from worker.sandbox import Process, Sandbox

JOBS: Final = 100
"""Jobs that the backend knows from the start, to play with: on the real platform somebody else makes them."""
SECONDS_BETWEEN_LOOKS: Final = 0.5

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
    """Start a Redis, a Ray, an agent, a backend and a worker on this machine, and wait for Ctrl-C."""
    # Imported here: the other commands work without the sandbox's packages.
    from worker.sandbox import Sandbox, SandboxError
    from worker.sandbox.seed import seed_digits

    try:
        with (
            interruptible(),
            starting() as start,
            Sandbox(directory, plugins_dir=plugins_dir, num_cpus=cpus, on_progress=say) as running,
        ):
            project = seed_digits(running.state, running.files_dir, running.files_url)
            for _ in range(workers):
                running.start_worker()
            _add_jobs(running)
            start.stop()
            _describe(running, project.id)
            with _settings_in(env_file, running.environment()):
                say(f"settings, in another shell: source {env_file}; Ctrl-C ends all")
                try:
                    _watch_over(running.workers)
                except KeyboardInterrupt:
                    say("stopping")
    except KeyboardInterrupt:
        say("interrupted; everything that the sandbox started has ended")
        raise typer.Exit(INTERRUPTED) from None
    except SandboxError as error:
        fail(str(error))


def starting() -> Heartbeat:
    """Says now and then that the start goes on: Ray alone takes a quarter of a minute."""
    return Heartbeat(lambda seconds: say(f"still starting, {seconds:.0f} s"))


def say(text: str) -> None:
    """One dim line of progress."""
    out.print(f"[dim]· {escape(text)}[/]", highlight=False)


def _add_jobs(running: "Sandbox") -> None:
    from worker.sandbox.sandbox import AGENT_ID

    for id_ in range(1, JOBS + 1):
        if running.state.job(id_) is None:
            running.state.add_job(id=id_, agent=AGENT_ID)


def _describe(running: "Sandbox", project: int) -> None:
    from worker.sandbox.sandbox import AGENT_ID

    say(f"logs in {running.directory / 'logs'}")
    say(f"agent {AGENT_ID}; jobs 1 to {JOBS}; project {project} holds the digits")
    for release in running.state.rows("SELECT id, code, version FROM plugin_releases ORDER BY id"):
        say(f"pre-processor {release['id']} is {release['code']}@{release['version']}")


def _watch_over(workers: "list[Process]") -> None:
    """Until Ctrl-C; a worker that ends is not started again, but nobody should have to guess it."""
    living = list(workers)
    while True:
        for worker in [each for each in living if not each.alive]:
            living.remove(worker)
            out.print(
                f"[bold red]{worker.name} has ended (exit code {worker.exit_code})[/], see {worker.log}",
                highlight=False,
                soft_wrap=True,
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)


@contextmanager
def _settings_in(env_file: Path, environ: Mapping[str, str]) -> Iterator[None]:
    """For this user's eyes only, also where a file of that name lay about: there are tokens in it."""
    env_file.unlink(missing_ok=True)
    text = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environ.items())
    with os.fdopen(os.open(env_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    try:
        yield
    finally:
        env_file.unlink(missing_ok=True)
