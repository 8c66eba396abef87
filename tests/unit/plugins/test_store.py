"""The store: names in, verified releases out."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from worker.plugins import PluginError, PluginStore, ReleaseInvalidError, ReleaseNotFoundError
from worker.plugins.package import zip_release

Write = Callable[..., Path]


def zip_folder(folder: Path) -> Path:
    archive = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(folder.rglob("*")):
            opened.write(path, path.relative_to(folder))
    return archive


def test_folder_and_zip_are_the_same_release(store: PluginStore, write_release: Write) -> None:
    folder = write_release("cat@1.0", words="WORD = 1")
    from_folder = store.get("cat@1.0")
    zip_folder(folder)
    folder.rename(folder.parent.parent / "moved")
    from_zip = store.get("cat@1.0")
    assert (from_zip.code, from_zip.version, from_zip.name) == ("cat", "1.0", "cat@1.0")
    assert from_zip.checksum == from_folder.checksum
    assert from_zip.path != from_folder.path


def test_names_lists_each_release_once(store: PluginStore, write_release: Write, plugins_dir: Path) -> None:
    zip_folder(write_release("cat@1.0"))
    write_release("ant@2.0")
    (plugins_dir / "notes.txt").touch()
    (plugins_dir / "dog@1.0").touch()
    assert store.names() == ["ant@2.0", "cat@1.0"]


@pytest.mark.parametrize(
    "name", ["cat@1.0", "cat", "../cat@1.0", "a@../b", "a@..", "/etc@1", "a@b/c", "a@1\n", ""]
)
def test_missing_release_is_not_found(store: PluginStore, name: str) -> None:
    with pytest.raises(ReleaseNotFoundError) as caught:
        store.get(name)
    assert "\n" not in str(caught.value)


def test_release_is_read_once_until_it_changes(store: PluginStore, write_release: Write) -> None:
    folder = write_release("cat@1.0", words="WORD = 1")
    first = store.get("cat@1.0")
    assert store.get("cat@1.0") is first
    (folder / "plugin" / "words.py").write_text("WORD = 22")
    second = store.get("cat@1.0")
    assert second.checksum != first.checksum


def test_checksum_ignores_files_made_by_running(store: PluginStore, write_release: Write) -> None:
    folder = write_release("cat@1.0", words="WORD = 1")
    first = store.get("cat@1.0")
    package = zip_release(folder)
    for ignored in ("__pycache__", ".git"):
        (folder / "plugin" / ignored).mkdir()
        (folder / "plugin" / ignored / "x").touch()
    os.utime(folder / "plugin" / "words.py", (1, 1))
    assert store.get("cat@1.0").checksum == first.checksum
    assert zip_release(folder) == package


def test_name_that_differs_from_the_config_is_rejected(store: PluginStore, write_release: Write) -> None:
    write_release("cat@1.0").rename(store.directory / "cat@2.0")
    with pytest.raises(ReleaseInvalidError, match=r"cat@2\.0: config\.yaml says cat@1\.0"):
        store.get("cat@2.0")


def test_links_out_of_the_folder_are_rejected(
    store: PluginStore, write_release: Write, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("s")
    folder = write_release("cat@1.0")
    (folder / "inside").symlink_to("config.yaml")
    assert store.get("cat@1.0")
    (folder / "plugin" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ReleaseInvalidError, match="leaves the release's folder"):
        store.get("cat@1.0")


def test_release_that_is_a_link_out_is_not_found(store: PluginStore, write_release: Write) -> None:
    folder = write_release("cat@1.0")
    outside = store.directory.parent / "outside"
    folder.rename(outside)
    folder.symlink_to(outside)
    with pytest.raises(ReleaseNotFoundError):
        store.get("cat@1.0")


def test_pipe_in_a_release_is_rejected(store: PluginStore, write_release: Write) -> None:
    os.mkfifo(write_release("cat@1.0") / "pipe")
    with pytest.raises(ReleaseInvalidError, match="not a regular file"):
        store.get("cat@1.0")


def test_release_that_is_too_large_is_rejected(store: PluginStore, write_release: Write) -> None:
    (write_release("cat@1.0") / "big").write_bytes(b"0" * (1024 * 1024 + 1))
    with pytest.raises(ReleaseInvalidError, match="larger than"):
        store.get("cat@1.0")


def test_package_that_hides_the_hosts_own_is_rejected(store: PluginStore, write_release: Write) -> None:
    (write_release("cat@1.0") / "shared.py").touch()
    with pytest.raises(ReleaseInvalidError, match="'shared' is taken"):
        store.get("cat@1.0")


def test_folder_without_config_is_rejected(store: PluginStore, plugins_dir: Path) -> None:
    (plugins_dir / "cat@1.0").mkdir()
    with pytest.raises(ReleaseInvalidError, match=r"has no config\.yaml"):
        store.get("cat@1.0")


def test_undeclared_action_is_named(store: PluginStore, write_release: Write) -> None:
    write_release("cat@1.0")
    with pytest.raises(ReleaseInvalidError, match=r"no action 'deploy' \(it has: to_task\)"):
        store.get("cat@1.0").action("deploy")


def test_cache_that_others_can_write_is_rejected(write_release: Write, tmp_path: Path) -> None:
    folder = write_release("cat@1.0")
    zip_folder(folder)
    folder.rename(tmp_path / "moved")
    cache = tmp_path / "open"
    cache.mkdir()
    cache.chmod(0o777)
    with pytest.raises(PluginError, match="can be written by others"):
        PluginStore(folder.parent, cache).get("cat@1.0")
