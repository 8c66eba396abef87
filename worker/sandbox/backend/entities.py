"""Plugin releases, and the handlers of tasks, data units, projects, data collections and agents."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from packaging.version import InvalidVersion, Version
from starlette.requests import Request
from starlette.routing import Route

from worker.sandbox.api import Api, ApiError, api_error, page_params, page_response, path_id, validated
from worker.sandbox.backend.state import Row, State


class Releases:
    """The rows of `plugin_releases`, read from the worker's plugin store, again whenever one is not found."""

    def __init__(self, state: State, plugins_dir: Path) -> None:
        self._state, self._plugins_dir = state, plugins_dir
        self.read()

    def read(self) -> None:
        """Add releases that are new in the store; known ones keep their ids."""
        for path in sorted(self._plugins_dir.iterdir()):
            config = _read_config(path)
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
        """Find a release by id or by `code@version`."""
        found = self._find(key)
        if found is None:
            self.read()
            found = self._find(key)
        return found

    def latest(self, code: str, version: str | None = None) -> Row | None:
        """The given version of a plugin, or the highest one."""
        found = self._versions(code, version)
        if not found:
            self.read()
            found = self._versions(code, version)
        return max(found, key=_version_key) if found else None

    def _find(self, key: int | str) -> Row | None:
        if isinstance(key, int):
            return self._state.row("SELECT * FROM plugin_releases WHERE id = ?", key)
        code, _, version = key.partition("@")
        sql = "SELECT * FROM plugin_releases WHERE code = ? AND version = ?"
        return self._state.row(sql, code, version)

    def _versions(self, code: str, version: str | None) -> list[Row]:
        sql = "SELECT * FROM plugin_releases WHERE code = ? AND coalesce(?, version) = version"
        return self._state.rows(sql, code, version)


def _version_key(release: Row) -> tuple[Version, str]:
    try:
        return Version(release["version"]), release["version"]
    except InvalidVersion:
        return Version("0"), release["version"]


def _read_config(path: Path) -> dict[str, Any] | None:
    try:
        if path.is_dir():
            text = (path / "config.yaml").read_text()
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                text = archive.read(_config_name(archive)).decode()
        else:
            return None
        config = yaml.safe_load(text)
    except (OSError, KeyError, UnicodeDecodeError, zipfile.BadZipFile, yaml.YAMLError):
        # The worker reports a broken release; the backend ignores it.
        return None
    return config if isinstance(config, dict) and {"code", "version"} <= config.keys() else None


def _config_name(archive: zipfile.ZipFile) -> str:
    """The name of `config.yaml` in an archive: at the top, or in the single folder at the top."""
    names = [name for name in archive.namelist() if name.split("/")[-1] == "config.yaml"]
    if not names:
        raise KeyError("config.yaml")
    return min(names, key=lambda name: name.count("/"))


class Entities:
    """Handlers of the entities that are rows of a table."""

    def __init__(self, state: State, releases: Releases) -> None:
        self._state, self._releases = state, releases

    def routes(self, api: Api) -> list[Route]:
        """The routes; the most frequent come first, because Starlette tries them in order."""
        return [
            api.route("/tasks/{id}/annotate_task_data/", PUT=self.annotate),
            api.route("/tasks/{id}/", GET=self.task),
            api.route("/sdk/tasks/", GET=self.tasks),
            api.route("/data_units/{id}/", GET=self.data_unit),
            api.route("/projects/{id}/", GET=self.project),
            api.route("/data_collections/{id}/", GET=self.data_collection),
            api.route("/plugin_releases/{id}/", GET=self.plugin_release),
            api.route("/models/{id}/", GET=self.model),
            api.route("/agents/", GET=self.agents),
        ]

    async def annotate(self, request: Request, body: object) -> object:
        """`PUT tasks/{id}/annotate_task_data/`"""
        fields = validated(body, {"action": str, "data": dict}, ["action", "data"])
        if fields["action"] != "submit":
            raise ApiError(400, {"action": ["must be submit"]})
        if request.query_params.get("schema", "any") not in ("any", "dm_schema_v1"):
            raise ApiError(400, {"schema": ["must be any or dm_schema_v1"]})
        task = path_id(request)
        if not isinstance(task, int) or not self._state.annotate(task, fields["data"]):
            raise api_error(404, "No Task matches the given query.")
        return {"id": task, "data": fields["data"]}

    async def task(self, request: Request, _body: object) -> object:
        """`GET tasks/{id}/`"""
        row = self._find_row("tasks", request)
        if "data_unit" in request.query_params.get("expand", "").split(","):
            row["data_unit"] = self._data_unit(row["data_unit"])
        return _select_fields(request, row)

    async def tasks(self, request: Request, _body: object) -> object:
        """`GET sdk/tasks/`; filters: `project`, `ids` or `id__in`, `data_unit`, `annotated`."""
        conditions, values = _task_filters(request)
        where = " AND ".join(conditions) or "1"
        page, size = page_params(request)
        columns = "id" if request.query_params.get("fields") == "id" else "*"
        count = self._state.value(f"SELECT count(*) FROM tasks WHERE {where}", *values)  # noqa: S608
        rows = self._state.rows(
            f"SELECT {columns} FROM tasks WHERE {where} ORDER BY id LIMIT ? OFFSET ?",  # noqa: S608
            *values,
            size,
            (page - 1) * size,
        )
        return page_response(request, count, [_select_fields(request, row) for row in rows])

    async def data_unit(self, request: Request, _body: object) -> object:
        """`GET data_units/{id}/`"""
        row = self._find_row("data_units", request)
        del row["in_tasks"]
        return _select_fields(request, row)

    async def project(self, request: Request, _body: object) -> object:
        """`GET projects/{id}/`"""
        return _select_fields(request, self._find_row("projects", request))

    async def data_collection(self, request: Request, _body: object) -> object:
        """`GET data_collections/{id}/`"""
        return _select_fields(request, self._find_row("data_collections", request))

    async def plugin_release(self, request: Request, _body: object) -> object:
        """`GET plugin_releases/{id}/`, by number or `code@version`."""
        release = self._releases.find(path_id(request))
        if release is None:
            raise api_error(404, "No PluginRelease matches the given query.")
        return _select_fields(request, release)

    async def model(self, request: Request, _body: object) -> object:
        """`GET models/{id}/`"""
        return _select_fields(request, self._find_row("models", request))

    async def agents(self, request: Request, _body: object) -> object:
        """`GET agents/`; filter: `id`."""
        wanted = request.query_params.get("id")
        rows = self._state.rows("SELECT * FROM agents WHERE coalesce(?, id) = id ORDER BY id", wanted)
        page, size = page_params(request)
        return page_response(request, len(rows), rows[(page - 1) * size : page * size])

    def _find_row(self, table: str, request: Request) -> Row:
        row = self._state.row(f"SELECT * FROM {table} WHERE id = ?", path_id(request))  # noqa: S608
        if row is None:
            raise api_error(404, "Not found.")
        return row

    def _data_unit(self, id: int | None) -> Row | None:
        row = self._state.row("SELECT * FROM data_units WHERE id = ?", id)
        if row is None:
            return None
        return {"id": row["id"], **({"files": row["files"]} if row["in_tasks"] else {})}


def _task_filters(request: Request) -> tuple[list[str], list[object]]:
    """SQL conditions and their values; unknown filters are ignored."""
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


def _select_fields(request: Request, row: Row) -> Row:
    """The fields that the query parameter `fields` names, or all."""
    fields = request.query_params.get("fields")
    if not fields:
        return row
    return {name: row[name] for name in fields.split(",") if name in row}
