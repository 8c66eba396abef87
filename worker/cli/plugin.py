"""The commands `plugin …`: list the releases in the plugin store, check one, write and run one."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.table import Table

from worker.actions.action_check import check_action
from worker.cli.authoring.commands import new, run
from worker.cli.console import PluginsDir, fail, out, table_cell
from worker.plugins import PluginError, PluginStore
from worker.settings import MB

app = typer.Typer(add_completion=False, help="Releases in the plugin store.", no_args_is_help=True)

app.command()(new)
app.command()(run)

MAX_RELEASE_BYTES = 512 * MB


@app.command("list")
def list_releases(plugins_dir: PluginsDir) -> None:
    """Releases and their actions; a broken one says why."""
    with TemporaryDirectory() as cache:
        store = PluginStore(plugins_dir, Path(cache), MAX_RELEASE_BYTES)
        table = Table("release", "actions", "problem")
        for name in store.names():
            try:
                table.add_row(name, table_cell(", ".join(store.get(name).config.actions)), "")
            except (PluginError, OSError) as error:
                table.add_row(name, "", table_cell(str(error)))
        out.print(table)


@app.command()
def check(
    release: Annotated[str, typer.Argument(help="code@version", metavar="RELEASE")],
    plugins_dir: PluginsDir,
) -> None:
    """Read one release without running its code, and say which way its actions go, or what is wrong."""
    with TemporaryDirectory() as cache:
        try:
            found = PluginStore(plugins_dir, Path(cache), MAX_RELEASE_BYTES).get(release)
        except (PluginError, OSError) as error:
            fail(str(error))
        verdicts = [check_action(found, name) for name in found.config.actions]
        if problems := list(dict.fromkeys(verdict.problem for verdict in verdicts if verdict.problem)):
            fail(f"{found.name}: {'; '.join(problems)}")
        out.print(f"{found.name} is sound: {table_cell(', '.join(found.config.actions))}", highlight=False)
        for verdict in verdicts:
            out.print(table_cell(f"{verdict.action}: {verdict.way}"), highlight=False, soft_wrap=True)
        out.print(f"checksum {found.checksum}", style="dim", highlight=False)
