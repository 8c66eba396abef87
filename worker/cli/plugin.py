"""The commands `plugin …`: list the releases in the plugin store, check one, write and run one."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.table import Table

from shared.messages import RESOURCE_KEYS, JsonObject
from worker.actions.action_check import check_action
from worker.cli.authoring.commands import new, run
from worker.cli.console import AsJson, PluginsDir, fail, out, print_json, print_table, table_cell
from worker.platform import AgentClient, ClientError
from worker.plugins import PluginError, PluginStore, Release, ReleaseConfig
from worker.plugins.package import zipped
from worker.plugins.store import release_files
from worker.settings import MB

app = typer.Typer(add_completion=False, help="Releases in the plugin store.", no_args_is_help=True)

app.command()(new)
app.command()(run)

MAX_RELEASE_BYTES = 512 * MB
MAX_RAY_PACKAGE_BYTES = 512 * MB
"""Of a package in Ray's own store, whose messages are no larger."""

TOTALS = {"num_cpus": ("cpu", "total"), "num_gpus": ("gpu", "total_gpus"), "memory": ("memory", "total")}
"""By resource, where an agent's answer has what the cluster has of it."""


@app.command("list")
def list_releases(plugins_dir: PluginsDir, as_json: AsJson = False) -> None:
    """Releases and their actions; a broken one says why."""
    rows: list[JsonObject] = []
    with TemporaryDirectory() as cache:
        store = PluginStore(plugins_dir, Path(cache), MAX_RELEASE_BYTES)
        for name in store.names():
            try:
                rows.append({"release": name, "actions": list(store.get(name).config.actions), "problem": ""})
            except (PluginError, OSError) as error:
                rows.append({"release": name, "actions": [], "problem": str(error)})
    if as_json:
        print_json(rows)
        return
    table = Table("release", "actions", "problem")
    for row in rows:
        table.add_row(row["release"], table_cell(", ".join(row["actions"])), table_cell(row["problem"]))
    print_table(table, empty="no releases")


@app.command()
def check(
    release: Annotated[str, typer.Argument(help="code@version", metavar="RELEASE")],
    plugins_dir: PluginsDir,
    package_store: Annotated[
        str | None, typer.Option(envvar="WORKER_PACKAGE_STORE", help="Where packages are stored.")
    ] = None,
    max_mb: Annotated[
        int, typer.Option(envvar="WORKER_PLUGIN_MAX_MB", help="Largest release, unpacked.")
    ] = 512,
    agent_url: Annotated[
        str | None,
        typer.Option(envvar="SYNAPSE_AGENT_URL", help="The agent of the cluster that is to run it."),
    ] = None,
) -> None:
    """Read one release without running its code, and say which way its actions go, or what is wrong."""
    with TemporaryDirectory() as cache:
        try:
            found = PluginStore(plugins_dir, Path(cache), max_mb * MB).get(release)
            sizes = [] if package_store else package_problems(found)
        except (PluginError, OSError) as error:
            fail(str(error))
        verdicts = [check_action(found, name) for name in found.config.actions]
        problems = [*(verdict.problem for verdict in verdicts if verdict.problem), *sizes]
        if agent_url:
            problems += _resource_problems(found, agent_url)
        if problems:
            fail(f"{found.name}: {'; '.join(dict.fromkeys(problems))}")
        out.print(f"{found.name} is sound: {table_cell(', '.join(found.config.actions))}", highlight=False)
        for verdict in verdicts:
            out.print(table_cell(f"{verdict.action}: {verdict.way}"), highlight=False, soft_wrap=True)
        out.print(f"checksum {found.checksum}", style="dim", highlight=False)


def package_problems(release: Release, max_bytes: int = MAX_RAY_PACKAGE_BYTES) -> list[str]:
    """What Ray's own store would not take of a release."""
    if sum(path.stat().st_size for _, path in release_files(release.path)) < max_bytes:
        return []
    with zipped(release.path) as package:
        size = package.size
    if size < max_bytes:
        return []
    return [
        f"its package has {size / MB:.1f} MB, and Ray's own store takes less than {max_bytes / MB:g} MB: set"
        " WORKER_PACKAGE_STORE"
    ]


def _resource_problems(release: Release, agent_url: str) -> list[str]:
    """Which actions ask for more than the agent's cluster has in all; an agent that is away is said."""
    token = os.environ.get("SYNAPSE_AGENT_TOKEN", "").strip()
    try:
        with AgentClient(agent_url, token) as agent:
            return resource_problems(release.config, agent.get_cluster_resources(use_cache=False))
    except (ClientError, ValueError) as error:
        out.print(f"resources not compared, the agent does not answer ({type(error).__name__})")
        return []


def resource_problems(config: ReleaseConfig, cluster: JsonObject) -> list[str]:
    """Which actions ask for more than there is in the cluster, whatever else runs there."""
    problems = []
    for name, action in config.actions.items():
        for resource, (part, key) in TOTALS.items():
            values = [action.required_resources.get(each) for each in RESOURCE_KEYS[resource]]
            asked = next((each for each in values if each is not None), None)
            total = (cluster.get(part) or {}).get(key)
            if isinstance(asked, int | float) and isinstance(total, int | float) and asked > total:
                problems.append(
                    f"action {name!r} asks for {resource} {asked:g}, and the cluster has {total:g}"
                )
    return problems
