"""The commands `plugin new` and `plugin run`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import httpx
import typer

from worker.actions.action_check import check_action
from worker.cli.authoring.local_files import served_files
from worker.cli.authoring.templates import Kind, files_of, write_release
from worker.cli.console import PluginsDir, err, fail, out, table_cell, terminal_json
from worker.plugins import ActionRequest, ClientAccess, PluginError, PluginStore, Release, request_for
from worker.plugins.child_process.environment import plugin_environment
from worker.plugins.output import read_output
from worker.settings import MB

MAX_RELEASE_BYTES = 512 * MB
ONCE_MODULE = "worker.cli.authoring.once"
FILLED_IN = {
    "name": "plugin run",
    "project": 1,
    "agent": 1,
    "target_specification_name": "data",
    "pre_processor": 1,
    "model": 1,
}
"""The parameters of the message, of which one task through the hooks needs none."""
TASK_ID = 1


def new(
    code: Annotated[str, typer.Argument(help="The plugin's code.", metavar="CODE")],
    plugins_dir: PluginsDir,
    kind: Annotated[Kind, typer.Option(help="What the release is to do.")] = Kind.BOTH,
    version: Annotated[str, typer.Option(help="Its version.")] = "1.0.0",
    fastapi: Annotated[bool, typer.Option("--fastapi", help="The model has FastAPI routes.")] = False,
) -> None:
    """Write a release that works as it is: a pre-processor, a to_task, or both."""
    name = f"{code}@{version}"
    folder = plugins_dir / name
    if "/" in name or code in ("", ".", "..") or "@" in version:
        fail(f"{name!r} is no name of a release")
    try:
        write_release(folder, files_of(code, version, kind, fastapi=fastapi))
        _release(name, plugins_dir)
    except FileExistsError:
        fail(f"{folder} is there already: choose another --version")
    except OSError as error:
        fail(f"{folder} cannot be written: {error.strerror or error}")
    out.print(f"{name} is in {table_cell(str(folder))}", highlight=False, soft_wrap=True)
    where = f"--plugins-dir {plugins_dir}"
    steps = [f"synapse-worker plugin check {name} {where}"]
    if kind is not Kind.PRE_PROCESSOR:
        steps.append(f"synapse-worker plugin run {name} to_task --file {folder}/sample.json {where}")
    steps.append(f"synapse-worker sandbox {where}")
    for step in steps:
        out.print(f"  {table_cell(step)}", highlight=False, soft_wrap=True)


def run(
    release: Annotated[str, typer.Argument(help="code@version", metavar="RELEASE")],
    action: Annotated[str, typer.Argument(help="An action that annotates.", metavar="ACTION")],
    plugins_dir: PluginsDir,
    file: Annotated[
        str | None, typer.Option(help="By file: path or URL of the file of the target specification.")
    ] = None,
    inference: Annotated[
        str | None,
        typer.Option(help="By inference: the pre-processor's answer as JSON or its file, or the URL to ask."),
    ] = None,
    primary: Annotated[
        str | None, typer.Option(help="Path or URL of the primary file; default: that of --file.")
    ] = None,
    params: Annotated[str, typer.Option(help="Parameters of the run as JSON.")] = "{}",
    timeout: Annotated[float, typer.Option(help="Seconds for each hook.", min=0.1)] = 300.0,
) -> None:
    """Take one task through the hooks, without Ray, Redis or a backend; exit code 1 when one fails."""
    if (file is None) == (inference is None):
        fail("give --file or --inference")
    try:
        found = _release(release, plugins_dir)
        given = {**FILLED_IN, "method": "file" if file else "inference", **_json("--params", params)}
        access = ClientAccess(
            host=os.environ.get("SYNAPSE_HOST", "http://127.0.0.1"),
            token=os.environ.get("WORKER_PLUGIN_ACCESS_TOKEN"),
            tenant=os.environ.get("SYNAPSE_TENANT"),
        )
        request = request_for(found, action, given, access, job=None)
    except PluginError as error:
        fail(str(error))
    way = check_action(found, action).way
    if way.startswith("runs whole"):
        err.print(
            table_cell(f"{action} {way}; plugin run calls its hooks alone"), style="dim", soft_wrap=True
        )
    hooks = _Hooks(found, request, timeout)
    with served_files() as url_of:
        data_url = url_of(file) if file else ""
        primary_url = url_of(primary) if primary else data_url or "http://127.0.0.1/primary"
        primary_name = primary_url.rpartition("/")[2]
        if file:
            names = primary_url, primary_name, data_url, data_url.rpartition("/")[2]
            data = hooks.call("convert_data_from_file", *names)
        else:
            call = hooks.call(
                "setup_inference_params",
                primary_url,
                primary_name,
                [],
                model_id=given["model"],
                pre_processor_params=given.get("pre_processor_params", {}),
                pre_processor_config={},
            )
            err.print("the pre-processor is sent", style="dim")
            err.print(terminal_json(call), markup=False, highlight=False, soft_wrap=True)
            data = hooks.call("convert_data_from_inference", _answer(inference or "", call))
    out.print(terminal_json(data), markup=False, highlight=False, soft_wrap=True)


class _Hooks:
    """The hooks of a release, each called in a process of its own as a worker's children are."""

    def __init__(self, release: Release, request: ActionRequest, timeout: float) -> None:
        self._release, self._request, self._timeout = release, request, timeout

    def call(self, hook: str, *positional: Any, **named: Any) -> Any:
        """The hook's value; ends the command with the author's traceback when it fails."""
        named["task_data"] = {"id": TASK_ID, "data": None}
        call = {
            "folder": str(self._release.path),
            "request": self._request.to_json(),
            "hook": hook,
            "positional": positional,
            "named": named,
        }
        with TemporaryDirectory() as folder:
            given, result = Path(folder) / "call", Path(folder) / "result"
            given.write_text(json.dumps(call))
            code = self._run(hook, given, result)
            if not result.exists():
                fail(f"{hook} ended its process (exit code {code})")
            found = json.loads(result.read_text())
        output = read_output(found["output"])
        for entry in output.entries if output else []:
            err.print(f"{entry.level}: {entry.text}", markup=False, highlight=False, soft_wrap=True)
        if "error" in found:
            err.print(found["error"], markup=False, highlight=False, soft_wrap=True)
            raise typer.Exit(1)
        return found["ok"]

    def _run(self, hook: str, given: Path, result: Path) -> int:
        declared = self._release.config.runtime_env.get("env_vars") or {}
        try:
            return subprocess.run(
                [sys.executable, "-P", "-m", ONCE_MODULE, str(given), str(result)],
                env=plugin_environment(os.environ, declared, self._request.env),
                timeout=self._timeout,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            fail(f"{hook} took longer than {self._timeout:g} s and was stopped")


def _release(name: str, plugins_dir: Path) -> Release:
    with TemporaryDirectory() as cache:
        found = PluginStore(plugins_dir, Path(cache), MAX_RELEASE_BYTES).get(name)
        if found.path.is_relative_to(Path(cache).resolve()):
            fail(f"{name} is an archive: unpack it into a folder of that name to run it")
        return found


def _json(what: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        fail(f"{what} is no JSON: {error}")


def _answer(given: str, call: dict[str, Any]) -> Any:
    """The pre-processor's answer: that of a URL which is asked, in a file, or given itself."""
    if given.startswith(("http://", "https://")):
        try:
            response = httpx.post(given, json=call.get("json"), timeout=60, trust_env=False)
            response.raise_for_status()
            return response.json()
        except (httpx.HTTPError, ValueError, RecursionError) as error:
            fail(f"the pre-processor did not answer: {error}")
    is_file = not given.lstrip().startswith(("{", "[")) and Path(given).is_file()
    return _json("--inference", Path(given).read_text() if is_file else given)
