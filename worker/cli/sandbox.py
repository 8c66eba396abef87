"""The command `sandbox`: everything that a worker needs on one machine, without an account."""

import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape

from worker.cli.console import INTERRUPTED_EXIT_CODE, PluginsDir, fail, out
from worker.cli.interrupts import interrupt_once
from worker.cli.progress import Ticker

if TYPE_CHECKING:
    from worker.cli.reload import Reloader
    from worker.sandbox import Process, Sandbox

POLL_INTERVAL_SECONDS: Final = 0.5

EXAMPLE_PLUGINS_DIR = Path(__file__).resolve().parents[2] / "examples" / "plugins"


def sandbox(
    plugins_dir: PluginsDir = EXAMPLE_PLUGINS_DIR,
    directory: Annotated[
        Path | None,
        typer.Option(help="Keep the sandbox's state here; default: a folder that is deleted at the end."),
    ] = None,
    cpus: Annotated[int, typer.Option(help="CPUs that Ray may use.", min=1)] = 4,
    workers: Annotated[int, typer.Option(help="Workers to start.", min=0)] = 1,
    env_file: Annotated[
        Path, typer.Option(help="The settings are written here, for a shell to source.")
    ] = Path(".sandbox.env"),
    reload: Annotated[
        bool, typer.Option("--reload", help="Check releases that change, and deploy those again that run.")
    ] = False,
) -> None:
    """Start a Redis, a Ray, an agent, a backend and a worker on this machine, and wait for Ctrl-C."""
    # Imported here: the other commands work without the sandbox's packages.
    from worker.sandbox import Sandbox, SandboxError
    from worker.sandbox.sandbox import AGENT_ID
    from worker.sandbox.seed import seed_platform

    # Shells elsewhere source the settings, too.
    plugins_dir = plugins_dir.absolute()
    try:
        with (
            interrupt_once(),
            startup_ticker() as ticker,
            Sandbox(directory, plugins_dir=plugins_dir, num_cpus=cpus, on_progress=print_progress) as running,
        ):
            project = seed_platform(running.state, running.files_dir, running.files_url, agent=AGENT_ID)
            for _ in range(workers):
                running.start_worker()
            url = running.start_console()
            ticker.stop()
            _print_contents(running, project)
            with _written_settings(env_file, running.environment()):
                print_progress(f"the live page is on {url}")
                print_progress(f"settings, in another shell: source {env_file}; Ctrl-C ends all")
                look = _reloader(running).look if reload else _nothing
                try:
                    _report_ended_workers(running.workers, look)
                except KeyboardInterrupt:
                    print_progress("stopping")
    except KeyboardInterrupt:
        print_progress("interrupted; everything that the sandbox started has ended")
        raise typer.Exit(INTERRUPTED_EXIT_CODE) from None
    except SandboxError as error:
        fail(str(error))


def startup_ticker() -> Ticker:
    """Prints at intervals that the sandbox is still starting: Ray alone takes 15 seconds."""
    return Ticker(lambda seconds: print_progress(f"still starting, {seconds:.0f} s"))


def print_progress(text: str) -> None:
    """One dim line of progress."""
    out.print(f"[dim]· {escape(text)}[/]", highlight=False)


def _print_contents(running: "Sandbox", project: int) -> None:
    from worker.sandbox.sandbox import AGENT_ID
    from worker.sandbox.seed import JOB_COUNT

    print_progress(f"logs in {running.directory / 'logs'}")
    if running.ray is not None:
        print_progress(
            f"Ray's dashboard: {running.ray.dashboard_url}, which asks for RAY_AUTH_TOKEN of the settings"
        )
    print_progress(f"agent {AGENT_ID}; jobs 1 to {JOB_COUNT}; project {project} holds the digits")
    for release in running.state.rows("SELECT id, code, version FROM plugin_releases ORDER BY id"):
        print_progress(f"pre-processor {release['id']} is {release['code']}@{release['version']}")


def _nothing() -> None:
    """Without `--reload`."""


def _reloader(running: "Sandbox") -> "Reloader":
    from worker.cli.reload import Reloader

    print_progress(
        f"releases that change in {running.plugins_dir} are checked; those that run are deployed again"
    )
    return Reloader(running, print_progress)


def _report_ended_workers(workers: "list[Process]", look: Callable[[], None] = _nothing) -> None:
    """Report workers that end, and `look` for something else, until Ctrl-C. They are not restarted."""
    running = list(workers)
    while True:
        look()
        for worker in [process for process in running if not process.alive]:
            running.remove(worker)
            out.print(
                f"[bold red]{worker.name} has ended (exit code {worker.exit_code})[/], see {worker.log}",
                highlight=False,
                soft_wrap=True,
            )
        time.sleep(POLL_INTERVAL_SECONDS)


@contextmanager
def _written_settings(env_file: Path, environ: Mapping[str, str]) -> Iterator[None]:
    """Write the settings, which hold tokens, to a file of this user for the duration of the block."""
    # An existing file might have other permissions.
    env_file.unlink(missing_ok=True)
    text = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environ.items())
    with os.fdopen(os.open(env_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    try:
        yield
    finally:
        env_file.unlink(missing_ok=True)
