"""Releases as an author would write them."""

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from worker.plugins import ClientAccess, PluginStore

CONFIG = """
code: {code}
version: "{version}"
actions:
  to_task: {{entrypoint: plugin.to_task.ToTask}}
"""

WriteRelease = Callable[..., Path]


@pytest.fixture
def access() -> ClientAccess:
    return ClientAccess(host="http://backend.test")


@pytest.fixture
def plugins_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "plugins"
    folder.mkdir()
    return folder


@pytest.fixture
def store(plugins_dir: Path, tmp_path: Path) -> PluginStore:
    return PluginStore(plugins_dir, tmp_path / "cache", max_bytes=1024 * 1024, stamp_seconds=0)


@pytest.fixture
def write_release(plugins_dir: Path) -> WriteRelease:
    def write(name: str = "cat@1.0", config: str = CONFIG, **modules: str) -> Path:
        code, _, version = name.partition("@")
        package = plugins_dir / name / "plugin"
        package.mkdir(parents=True)
        (package.parent / "config.yaml").write_text(config.format(code=code, version=version))
        (package / "__init__.py").touch()
        for module, text in modules.items():
            (package / f"{module}.py").write_text(dedent(text))
        return package.parent

    return write
