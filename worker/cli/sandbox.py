"""The command `sandbox`: everything a worker needs on one machine, without any account."""

import signal
import threading
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from worker.cli.console import fail, out

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

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with Sandbox(directory, plugins_dir=plugins_dir, num_cpus=cpus, on_progress=say) as running:
            project = seed_digits(running.state, running.files_dir, running.files_url)
            for _ in range(workers):
                running.start_worker()
            env_file.touch(mode=0o600)
            lines = [f"export {name}={value!r}" for name, value in running.environment().items()]
            env_file.write_text("\n".join(lines) + "\n", encoding="utf-8")
            say(f"project {project.id} holds the digits; settings: source {env_file}; Ctrl-C ends it")
            stop.wait()
            say("stopping")
    except SandboxError as error:
        fail(str(error))
    finally:
        env_file.unlink(missing_ok=True)


def say(text: str) -> None:
    """One dim line of progress."""
    out.print(f"[dim]· {escape(text)}[/]", highlight=False)
