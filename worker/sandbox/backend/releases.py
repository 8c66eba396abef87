"""The plugin releases that the backend knows: what lies in the worker's plugin store."""

import zipfile
from pathlib import Path
from typing import Any

import yaml
from packaging.version import InvalidVersion, Version

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
