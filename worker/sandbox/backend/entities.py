"""The plugin releases that the backend knows: what lies in the worker's plugin store."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from packaging.version import InvalidVersion, Version
from starlette.requests import Request
from starlette.routing import Route

from worker.sandbox.api import Api, Refusal, bounds, checked, identifier, paged, refusal
from worker.sandbox.backend.state import Row, State


class Releases:
    """Rows of `plugin_releases`, read from the store; it is read again when a release is not known."""

    def __init__(self, state: State, plugins_dir: Path) -> None:
        self._state, self._plugins_dir = state, plugins_dir
        self.read()

    def read(self) -> None:
        """Add what is new in the store; a release keeps its id."""
        for path in sorted(self._plugins_dir.iterdir()):
            config = _config(path)
            if config is None:
                continue
            code, version = str(config["code"]), str(config["version"])
            known = self._state.row(
                "SELECT id FROM plugin_releases WHERE code = ? AND version = ?", code, version
            )
            if known is None:
                row = {"code": code, "version": version, "config": config}
                self._state.insert("plugin_releases", row)
            else:
                self._state.update("plugin_releases", known["id"], {"config": config})

    def find(self, key: int | str) -> Row | None:
        """By number, or by `code@version`."""
        found = self._find(key)
        if found is None:
            self.read()
            found = self._find(key)
        return found

    def latest(self, code: str, version: str | None = None) -> Row | None:
        """That version of a plugin, or the highest."""
        found = self._versions(code, version)
        if not found:
            self.read()
            found = self._versions(code, version)
        return max(found, key=_order) if found else None

    def _find(self, key: int | str) -> Row | None:
        if isinstance(key, int):
            return self._state.row("SELECT * FROM plugin_releases WHERE id = ?", key)
        code, _, version = key.partition("@")
        sql = "SELECT * FROM plugin_releases WHERE code = ? AND version = ?"
        return self._state.row(sql, code, version)

    def _versions(self, code: str, version: str | None) -> list[Row]:
        sql = "SELECT * FROM plugin_releases WHERE code = ? AND coalesce(?, version) = version"
        return self._state.rows(sql, code, version)


def _order(release: Row) -> tuple[Version, str]:
    try:
        return Version(release["version"]), release["version"]
    except InvalidVersion:
        return Version("0"), release["version"]


def _config(path: Path) -> dict[str, Any] | None:
    try:
        if path.is_dir():
            text = (path / "config.yaml").read_text()
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                text = archive.read(_shallowest(archive)).decode()
        else:
            return None
        config = yaml.safe_load(text)
    except (OSError, KeyError, UnicodeDecodeError, zipfile.BadZipFile, yaml.YAMLError):
        # A broken release is for the worker to refuse; the backend has never heard of it.
        return None
    return config if isinstance(config, dict) and {"code", "version"} <= config.keys() else None


def _shallowest(archive: zipfile.ZipFile) -> str:
    """`config.yaml` at the top, or in the one folder at the top."""
    names = [name for name in archive.namelist() if name.split("/")[-1] == "config.yaml"]
    if not names:
        raise KeyError("config.yaml")
    return min(names, key=lambda name: name.count("/"))


class Entities:
    """Handlers over the state's tables."""

    def __init__(self, state: State, releases: Releases) -> None:
        self._state, self._releases = state, releases

    def routes(self, api: Api) -> list[Route]:
        """Their addresses; the busiest come first."""
        return [
            api.route("/tasks/{id}/annotate_task_data/", PUT=self.annotate),
            api.route("/tasks/{id}/", GET=self.task),
            api.route("/sdk/tasks/", GET=self.tasks),
            api.route("/data_units/{id}/", GET=self.data_unit),
            api.route("/projects/{id}/", GET=self.project),
            api.route("/data_collections/{id}/", GET=self.data_collection),
            api.route("/plugin_releases/{id}/", GET=self.plugin_release),
            api.route("/agents/", GET=self.agents),
        ]

    async def annotate(self, request: Request, body: object) -> object:
        """`PUT tasks/{id}/annotate_task_data/`"""
        given = checked(body, {"action": str, "data": dict}, ["action", "data"])
        if given["action"] != "submit":
            raise Refusal(400, {"action": ["must be submit"]})
        if request.query_params.get("schema", "any") not in ("any", "dm_schema_v1"):
            raise Refusal(400, {"schema": ["must be any or dm_schema_v1"]})
        task = identifier(request)
        if not isinstance(task, int) or not self._state.annotate(task, given["data"]):
            raise refusal(404, "No Task matches the given query.")
        return {"id": task, "data": given["data"]}

    async def task(self, request: Request, _body: object) -> object:
        """`GET tasks/{id}/`"""
        row = self._one("tasks", request)
        if "data_unit" in request.query_params.get("expand", "").split(","):
            row["data_unit"] = self._unit(row["data_unit"])
        return _chosen(request, row)

    async def tasks(self, request: Request, _body: object) -> object:
        """`GET sdk/tasks/`; filters: `project`, `ids` or `id__in`, `data_unit`, `annotated`."""
        conditions, values = _task_filters(request)
        where = " AND ".join(conditions) or "1"
        page, size = bounds(request)
        columns = "id" if request.query_params.get("fields") == "id" else "*"
        count = self._state.value(f"SELECT count(*) FROM tasks WHERE {where}", *values)  # noqa: S608
        rows = self._state.rows(
            f"SELECT {columns} FROM tasks WHERE {where} ORDER BY id LIMIT ? OFFSET ?",  # noqa: S608
            *values,
            size,
            (page - 1) * size,
        )
        return paged(request, count, [_chosen(request, row) for row in rows])

    async def data_unit(self, request: Request, _body: object) -> object:
        """`GET data_units/{id}/`"""
        row = self._one("data_units", request)
        del row["in_tasks"]
        return _chosen(request, row)

    async def project(self, request: Request, _body: object) -> object:
        """`GET projects/{id}/`"""
        return _chosen(request, self._one("projects", request))

    async def data_collection(self, request: Request, _body: object) -> object:
        """`GET data_collections/{id}/`"""
        return _chosen(request, self._one("data_collections", request))

    async def plugin_release(self, request: Request, _body: object) -> object:
        """`GET plugin_releases/{id}/`, by number or `code@version`."""
        release = self._releases.find(identifier(request))
        if release is None:
            raise refusal(404, "No PluginRelease matches the given query.")
        return _chosen(request, release)

    async def agents(self, request: Request, _body: object) -> object:
        """`GET agents/`; filter: `id`."""
        wanted = request.query_params.get("id")
        rows = self._state.rows("SELECT * FROM agents WHERE coalesce(?, id) = id ORDER BY id", wanted)
        page, size = bounds(request)
        return paged(request, len(rows), rows[(page - 1) * size : page * size])

    def _one(self, table: str, request: Request) -> Row:
        row = self._state.row(f"SELECT * FROM {table} WHERE id = ?", identifier(request))  # noqa: S608
        if row is None:
            raise refusal(404, "Not found.")
        return row

    def _unit(self, id: int | None) -> Row | None:
        row = self._state.row("SELECT * FROM data_units WHERE id = ?", id)
        if row is None:
            return None
        return {"id": row["id"], **({"files": row["files"]} if row["in_tasks"] else {})}


def _task_filters(request: Request) -> tuple[list[str], list[object]]:
    """Conditions and their values; filters of other names are ignored."""
    query, conditions, values = request.query_params, [], list[object]()
    for name in ("project", "data_unit"):
        if name in query:
            conditions.append(f"{name} = ?")
            values.append(query[name])
    if "annotated" in query:
        conditions.append("writes > 0" if query["annotated"].lower() in ("true", "1") else "writes = 0")
    for name in ("ids", "id__in"):
        if name in query:
            ids: Sequence[str] = ",".join(query.getlist(name)).split(",")
            conditions.append(f"id IN ({', '.join('?' * len(ids))})")
            values += ids
    return conditions, values


def _chosen(request: Request, row: Row) -> Row:
    """Only the fields that the query names, when it names any."""
    fields = request.query_params.get("fields")
    if not fields:
        return row
    return {name: row[name] for name in fields.split(",") if name in row}
