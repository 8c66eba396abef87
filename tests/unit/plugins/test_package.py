"""A release's package, where it is stored, and its runtime environment."""

import io
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from worker.plugins import (
    PluginHostUnavailableError,
    PluginStore,
    ReleaseInvalidError,
)
from worker.plugins.package import RECHECK_SECONDS, FolderPackages, RayPackages, runtime_env, zip_release

Write = Callable[..., Path]


CONFIG = """
code: {code}
version: "{version}"
actions: {{}}
"""


class Dashboard:
    """Ray's package routes."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.status = 200

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.calls.append(request.method)
        if self.status != 200:
            return httpx.Response(self.status)
        if request.method == "PUT":
            self.kept[request.url.path] = request.content
        return httpx.Response(200 if request.url.path in self.kept else 404)


@pytest.fixture
def dashboard() -> Dashboard:
    return Dashboard()


@pytest.fixture
def packages(dashboard: Dashboard) -> RayPackages:
    made = RayPackages("http://ray.test", {})
    made._client = httpx.Client(base_url="http://ray.test", transport=httpx.MockTransport(dashboard))
    return made


def test_package_is_uploaded_once_and_checked_again(
    store: PluginStore, write_release: Write, dashboard: Dashboard, packages: RayPackages
) -> None:
    write_release("cat@1.0")
    release = store.get("cat@1.0")
    uri = packages.ensure(release)
    assert uri.startswith("gcs://_ray_pkg_")
    assert packages.ensure(release) == uri
    assert dashboard.calls == ["GET", "PUT", "GET"]
    dashboard.kept.clear()  # Ray forgot it
    packages._checked[release.checksum] = (uri, time.monotonic() - RECHECK_SECONDS - 1)
    assert packages.ensure(release) == uri
    assert list(dashboard.kept.values()) == [zip_release(release.path)]


@pytest.mark.parametrize(("status", "message"), [(401, "RAY_AUTH_MODE=token"), (500, "HTTP 500")])
def test_rejection_by_the_dashboard_says_why(
    store: PluginStore,
    write_release: Write,
    dashboard: Dashboard,
    packages: RayPackages,
    status: int,
    message: str,
) -> None:
    write_release("cat@1.0")
    dashboard.status = status
    with pytest.raises(PluginHostUnavailableError, match=message):
        packages.ensure(store.get("cat@1.0"))


def test_package_has_two_entries_at_its_top(store: PluginStore, write_release: Write) -> None:
    write_release("cat@1.0")
    with zipfile.ZipFile(io.BytesIO(zip_release(store.get("cat@1.0").path))) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert {"plugin", "config.yaml"} < tops


def test_folder_stores_packages(store: PluginStore, write_release: Write, tmp_path: Path) -> None:
    write_release("cat@1.0")
    release = store.get("cat@1.0")
    uri = FolderPackages(tmp_path / "shared").ensure(release)
    file = Path(uri.removeprefix("file://"))
    assert file.read_bytes() == zip_release(release.path)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_runtime_env_has_package_requirements_and_env(store: PluginStore, write_release: Write) -> None:
    config = (
        CONFIG
        + "package_manager: uv\nwheels_dir: wheels\nruntime_env: {{env_vars: {{A: 1}}, eager_install: true}}"
    )
    folder = write_release("cat@1.0", config=config)
    (folder / "requirements.txt").write_text(
        "# what\nnumpy==2.0 # why\n--extra-index-url https://x.test/simple\n\n"
    )
    made = runtime_env(store.get("cat@1.0"), "gcs://p.zip", {"B": "2"})
    assert made["working_dir"] == "gcs://p.zip"
    assert made["env_vars"] == {"A": "1", "B": "2"}
    assert made["eager_install"] is True
    assert made["uv"]["packages"] == ["numpy==2.0"]
    assert made["uv"]["uv_pip_install_options"][:2] == ["--extra-index-url", "https://x.test/simple"]
    assert made["uv"]["uv_pip_install_options"][2] == "--find-links"


def test_release_cannot_choose_its_working_dir(store: PluginStore, write_release: Write) -> None:
    write_release("cat@1.0", config=CONFIG + "runtime_env: {{working_dir: s3://elsewhere}}")
    with pytest.raises(ReleaseInvalidError, match="must not set working_dir"):
        runtime_env(store.get("cat@1.0"), "gcs://p.zip", {})
