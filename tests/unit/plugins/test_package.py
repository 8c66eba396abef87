"""What the Ray host is made of, without Ray."""

import io
import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from worker.platform import redact
from worker.plugins import (
    ActionRequest,
    ClientAccess,
    PluginHostBusyError,
    PluginHostUnavailableError,
    PluginStore,
    ReleaseInvalidError,
    ray_host,
)
from worker.plugins.package import RECHECK_SECONDS, FolderPackages, RayPackages, runtime_env, zip_release
from worker.plugins.ray_session import RaySession, auth_headers

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


def test_a_package_is_uploaded_once_and_looked_at_again(
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
def test_a_dashboard_that_refuses_is_told(
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


def test_a_package_has_two_entries_at_its_top(store: PluginStore, write_release: Write) -> None:
    write_release("cat@1.0")
    with zipfile.ZipFile(io.BytesIO(zip_release(store.get("cat@1.0").path))) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert {"plugin", "config.yaml"} < tops


def test_a_folder_keeps_packages(store: PluginStore, write_release: Write, tmp_path: Path) -> None:
    write_release("cat@1.0")
    release = store.get("cat@1.0")
    uri = FolderPackages(tmp_path / "shared").ensure(release)
    file = Path(uri.removeprefix("file://"))
    assert file.read_bytes() == zip_release(release.path)
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_the_runtime_environment_of_a_release(store: PluginStore, write_release: Write) -> None:
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


def test_a_release_cannot_choose_its_own_working_dir(store: PluginStore, write_release: Write) -> None:
    write_release("cat@1.0", config=CONFIG + "runtime_env: {{working_dir: s3://elsewhere}}")
    with pytest.raises(ReleaseInvalidError, match="must not set working_dir"):
        runtime_env(store.get("cat@1.0"), "gcs://p.zip", {})


def test_a_request_survives_the_journey() -> None:
    access = ClientAccess("http://b", "token", "tenant", "http://a")
    request = ActionRequest("c@1", "to_task", "p.C", {"a": 1}, {"E": "1"}, "42", clients=access)
    assert ActionRequest.from_json(request.to_json()) == request
    assert ActionRequest.from_json(ActionRequest("c@1", "a", "p.C").to_json()).clients is None
    json.loads(request.to_json())


def test_no_address_says_what_to_set() -> None:
    with pytest.raises(PluginHostUnavailableError, match="set RAY_ADDRESS"):
        RaySession().connect(None)


@pytest.mark.parametrize("address", ["auto", "local", "ray", "host:"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(PluginHostUnavailableError, match="host:port"):
        RaySession().connect(address)


def test_the_dashboards_header(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert auth_headers() == {}
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    (tmp_path / "token").write_text("abc\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert auth_headers() == {"Authorization": "Bearer abc"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "def")
    assert auth_headers() == {"Authorization": "Bearer def"}


def test_the_clusters_token_is_a_known_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "raytoken-55d1c7")

    auth_headers()

    assert redact("said raytoken-55d1c7") == "said ***"


def test_who_waits_for_its_turn_is_sent_away_and_not_told_that_it_took_too_long(
    store: PluginStore, write_release: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_host, "MAX_SLOT_WAIT_SECONDS", 0.01)
    write_release("cat@1.0")
    release = store.get("cat@1.0")
    host = ray_host.RayHost(RaySession(), None, lambda: pytest.fail("no package"), 300.0)
    actor = ray_host._Actor(handle=None)
    request = ActionRequest("cat@1.0", "to_task", "plugin.to_task.ToTask")
    with actor.slot, pytest.raises(PluginHostBusyError, match="busy"):
        host._call_in_slot(("a", "b"), actor, release, request, "convert_from_files", "[]")
