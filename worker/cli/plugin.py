"""The commands `plugin …`: list the releases in the plugin store, and check one for mistakes."""

import ast
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.table import Table

from worker.cli.console import PluginsDir, fail, out, table_cell
from worker.plugins import PluginError, PluginStore, Release
from worker.settings import MB

app = typer.Typer(add_completion=False, help="Releases in the plugin store.", no_args_is_help=True)

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
    """Read one release as a worker would, without running its code, and say what is wrong with it."""
    with TemporaryDirectory() as cache:
        try:
            found = PluginStore(plugins_dir, Path(cache), MAX_RELEASE_BYTES).get(release)
        except (PluginError, OSError) as error:
            fail(str(error))
        if problems := list(dict.fromkeys(_entrypoint_problems(found))):
            fail(f"{found.name}: {'; '.join(problems)}")
        out.print(f"{found.name} is sound: {table_cell(', '.join(found.config.actions))}", highlight=False)
        out.print(f"checksum {found.checksum}", style="dim", highlight=False)


def _entrypoint_problems(release: Release) -> Iterator[str]:
    """Mistakes in the entry points that can be found without running the plugin's code."""
    for name, action in release.config.actions.items():
        module, _, attribute = action.entrypoint.replace(":", ".").rpartition(".")
        base = release.path.joinpath(*module.split("."))
        source = next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)
        if source is None:
            yield f"action {name!r}: there is no module {module!r}"
            continue
        try:
            names = _bound_names(ast.parse(source.read_bytes()))
        except (RecursionError, MemoryError):
            yield f"{source.relative_to(release.path)} is nested too deeply"
            continue
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None) or 1
            yield f"{source.relative_to(release.path)}, line {line}: {getattr(error, 'msg', error)}"
            continue
        if attribute not in names and "*" not in names:
            yield f"action {name!r}: module {module!r} has no {attribute!r}"


def _bound_names(tree: ast.Module) -> set[str]:
    """All names that a module may bind, also in an `if` or a `try`."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.asname or alias.name for alias in aliases}
            case ast.Name(id=name, ctx=ast.Store()):
                names.add(name)
    return names
