"""A release's package, where it is stored, and its runtime environment."""

import os
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.fake_ray_driver import FakeRayDriver
from worker import blame
from worker.plugins import (
    PluginHostUnavailableError,
    PluginStore,
    RayDriverError,
    ReleaseInvalidError,
)
from worker.plugins.errors import ReleaseChangedError
from worker.plugins.package import (
    RECHECK_SECONDS,
    FolderPackages,
    RayPackages,
    package_of,
    runtime_env,
    zipped,
)
from worker.plugins.ray_driver import RayConnection

Write = Callable[..., Path]


CONFIG = """
code: {code}
version: "{version}"
actions: {{}}
"""


@pytest.fixture
def kept() -> dict[str, bytes]:
    """What Ray's store holds."""
    return {}


@pytest.fixture
def driver(kept: dict[str, bytes]) -> FakeRayDriver:
    return FakeRayDriver(
        keep_package=lambda uri, _seconds: uri in kept,
        upload_package=lambda uri, path, _seconds: kept.update({uri: Path(path).read_bytes()}),
    )


@pytest.fixture
def connection(driver: FakeRayDriver) -> RayConnection:
    driver.start()
    return RayConnection("head:6379", driver)


def test_package_is_uploaded_once_and_checked_again(
    store: PluginStore,
    write_release: Write,
    driver: FakeRayDriver,
    connection: RayConnection,
    kept: dict[str, bytes],
) -> None:
    write_release("cat@1.0")
    release = store.get("cat@1.0")
    packages = RayPackages(connection)
    uri = packages.ensure(release)
    assert uri.startswith("gcs://_ray_pkg_")
    assert packages.ensure(release) == uri
    assert driver.calls == ["keep_package", "upload_package"]
    kept.clear()  # Ray forgot it
    packages._checked[release.checksum] = (uri, time.monotonic() - RECHECK_SECONDS - 1)
    assert packages.ensure(release) == uri
    with package_of(release) as package:
        assert list(kept.values()) == [package.path.read_bytes()]


def test_package_is_checked_again_on_a_new_connection(
    store: PluginStore, write_release: Write, connection: RayConnection, kept: dict[str, bytes]
) -> None:
    write_release("cat@1.0")
    release = store.get("cat@1.0")
    packages = RayPackages(connection)
    uri = packages.ensure(release)

    kept.clear()  # the cluster was started anew
    connection.generation += 1

    assert packages.ensure(release) == uri
    assert uri in kept


def test_gone_package_is_restored_from_the_same_content_only(
    store: PluginStore, write_release: Write, connection: RayConnection, kept: dict[str, bytes]
) -> None:
    # Given a package that Ray has lost
    folder = write_release("cat@1.0")
    packages, release = RayPackages(connection), store.get("cat@1.0")
    uri = packages.ensure(release)
    assert packages.keep(uri)
    kept.clear()
    assert not packages.keep(uri)

    # Then it is stored again while the release has its content
    assert packages.restore(uri, release)
    assert uri in kept

    # And nothing is stored once the release has other content
    kept.clear()
    (folder / "plugin" / "more.py").write_text("")
    assert not packages.restore(uri, store.get("cat@1.0"))
    assert kept == {}


def test_package_of_another_store_is_left_to_it(connection: RayConnection, driver: FakeRayDriver) -> None:
    assert RayPackages(connection).keep("file:///shared/a.zip")
    assert driver.calls == []


def test_package_that_left_its_folder_is_written_again(
    store: PluginStore, write_release: Write, tmp_path: Path
) -> None:
    write_release("cat@1.0")
    packages, release = FolderPackages(tmp_path / "shared"), store.get("cat@1.0")
    uri = packages.ensure(release)
    file = Path(uri.removeprefix("file://"))
    assert packages.keep(uri)
    assert packages.keep("gcs://_ray_pkg_a.zip")

    file.unlink()

    assert not packages.keep(uri)
    assert packages.restore(uri, release)
    assert file.is_file()


def test_upload_that_fails_says_why(
    store: PluginStore, write_release: Write, driver: FakeRayDriver, connection: RayConnection
) -> None:
    write_release("cat@1.0")
    driver.answers["upload_package"] = RayDriverError("RuntimeError", "RuntimeError", "too large")
    with pytest.raises(PluginHostUnavailableError, match=r"package \(RuntimeError\)"):
        RayPackages(connection).ensure(store.get("cat@1.0"))


def test_a_package_that_ray_never_takes_ends_the_run(
    store: PluginStore, write_release: Write, driver: FakeRayDriver, connection: RayConnection
) -> None:
    # Given a cluster that answers as Ray does to a package over its limit
    write_release("cat@1.0")
    text = "Package size (612.00MiB) exceeds the maximum size of 512.00MiB. To exclude large files, …"
    driver.answers["upload_package"] = RayDriverError("ValueError", "ValueError", text)

    # Then the error is the release's, so that nothing is tried again, and it says what to set
    with pytest.raises(ReleaseInvalidError, match=r"the package of cat@1\.0 is .* set WORKER_PACKAGE_STORE"):
        RayPackages(connection).ensure(store.get("cat@1.0"))


def test_package_has_two_entries_at_its_top(store: PluginStore, write_release: Write) -> None:
    write_release("cat@1.0")
    with package_of(store.get("cat@1.0")) as package, zipfile.ZipFile(package.path) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert {"plugin", "config.yaml"} < tops


def test_folder_stores_packages(store: PluginStore, write_release: Write, tmp_path: Path) -> None:
    write_release("cat@1.0")
    release = store.get("cat@1.0")
    uri = FolderPackages(tmp_path / "shared").ensure(release)
    file = Path(uri.removeprefix("file://"))
    with package_of(release) as package:
        assert file.read_bytes() == package.path.read_bytes()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_runtime_env_has_package_requirements_and_env(store: PluginStore, write_release: Write) -> None:
    config = (
        CONFIG
        + "package_manager: uv\nwheels_dir: wheels\nruntime_env: {{env_vars: {{A: 1}}, eager_install: true}}"
    )
    folder = write_release("cat@1.0", config=config)
    (folder / "wheels").mkdir()
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
        store.get("cat@1.0")


@pytest.mark.parametrize("kind", ["ray", "folder"])
def test_a_package_has_only_the_files_of_its_checksum(
    store: PluginStore,
    write_release: Write,
    connection: RayConnection,
    kept: dict[str, bytes],
    tmp_path: Path,
    kind: str,
) -> None:
    # Given a release whose files were changed in place since they were looked at
    folder = write_release("cat@1.0")
    release = store.get("cat@1.0")
    (folder / "plugin" / "more.py").write_text("")
    packages = RayPackages(connection) if kind == "ray" else FolderPackages(tmp_path / "shared")

    # Then no package has its checksum, and the step is tried again
    with pytest.raises(ReleaseChangedError, match=r"the files of cat@1\.0 are being changed") as raised:
        packages.ensure(release)
    assert blame.in_step(raised.value).retries is blame.Retries.HOUR
    assert kept == {}

    # And once they are seen, they have a checksum and a package of their own
    assert packages.ensure(store.get("cat@1.0"))


def test_the_checksum_of_a_package_is_that_of_the_store(store: PluginStore, write_release: Write) -> None:
    folder = write_release("cat@1.0", words="WORD = 1")
    (folder / "plugin" / "empty.txt").touch()
    with zipped(folder) as package:
        assert package.checksum == store.get("cat@1.0").checksum


def test_a_package_is_not_held_in_memory(write_release: Write, tmp_path: Path) -> None:
    # Given a release with a file that does not get smaller
    folder = write_release("cat@1.0")
    (folder / "model.bin").write_bytes(os.urandom(24 * 1024 * 1024))
    release = PluginStore(folder.parent, tmp_path / "cache", 64 * 1024 * 1024).get("cat@1.0")

    # When it is stored
    tracemalloc.start()
    try:
        FolderPackages(tmp_path / "shared").ensure(release)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    # Then no more than some pieces of it were in memory at once
    assert peak < 6 * 1024 * 1024


def test_packages_of_killed_processes_are_removed(
    store: PluginStore, write_release: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given what a process has left that was killed while it zipped a release, and one that still does
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, other = (tmp_path / f"synapse-package-{pid}-x.zip" for pid in (2**22 + 1, os.getppid()))
    for path in (left, other):
        path.touch()

    with zipped(write_release("cat@1.0")):
        pass

    assert [path.name for path in tmp_path.glob("synapse-package-*")] == [other.name]
