"""Commands for plugin authors and operators: what is in the store, and is it sound."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.table import Table

from worker.cli.console import fail, out
from worker.plugins import PluginError, PluginStore
from worker.settings import MB

app = typer.Typer(help="Releases in the plugin store.", no_args_is_help=True)

Store = Annotated[
    Path,
    typer.Option(
        "--plugins-dir", envvar="PLUGINS_DIR", help="The plugin store.", exists=True, file_okay=False
    ),
]
DEFAULT_MAX_BYTES = 512 * MB


@app.command("list")
def list_releases(plugins_dir: Store) -> None:
    """Releases and their actions; a broken one says why."""
    with TemporaryDirectory() as cache:
        store = PluginStore(plugins_dir, Path(cache), DEFAULT_MAX_BYTES)
        table = Table("release", "actions", "problem")
        for name in store.names():
            try:
                table.add_row(name, ", ".join(store.get(name).config.actions), "")
            except PluginError as error:
                table.add_row(name, "", str(error))
        out.print(table)


@app.command()
def check(
    release: Annotated[str, typer.Argument(help="code@version", metavar="RELEASE")],
    plugins_dir: Store,
) -> None:
    """Read one release as a worker would, and say what is wrong with it."""
    with TemporaryDirectory() as cache:
        try:
            found = PluginStore(plugins_dir, Path(cache), DEFAULT_MAX_BYTES).get(release)
        except PluginError as error:
            fail(str(error))
        out.print(f"{found.name} is sound: {', '.join(found.config.actions)} (checksum {found.checksum})")
