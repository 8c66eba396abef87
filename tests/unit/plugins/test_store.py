"""The store: names in, verified releases out."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import pytest

from worker import blame
from worker.plugins import PluginStore, ReleaseInvalidError, ReleaseNotFoundError
from worker.plugins import store as store_module
from worker.plugins.package import zipped
from worker.plugins.store import STAMP_SECONDS

Write = Callable[..., Path]


def zip_folder(folder: Path) -> Path:
    archive = folder.with_name(f"{folder.name}.zip")
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(folder.rglob("*")):
            opened.write(path, path.relative_to(folder))
    return archive


def digest_of_package(folder: Path) -> str:
    with zipped(folder) as package:
        return package.hexdigest("sha256")


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
def test_missing_release_is_not_found(store: PluginStore, write_release: Write, name: str) -> None:
    write_release("cat@2.0")
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
    package = digest_of_package(folder)
    for ignored in ("__pycache__", ".git"):
        (folder / "plugin" / ignored).mkdir()
        (folder / "plugin" / ignored / "x").touch()
    os.utime(folder / "plugin" / "words.py", (1, 1))
    assert store.get("cat@1.0").checksum == first.checksum
    assert digest_of_package(folder) == package


def test_checksum_and_package_ignore_files_of_desktops(store: PluginStore, write_release: Write) -> None:
    folder = write_release("cat@1.0", words="WORD = 1")
    before, package = store.get("cat@1.0").checksum, digest_of_package(folder)
    for name in (".DS_Store", "plugin/Thumbs.db", "plugin/._words.py", "__MACOSX/x", "plugin/desktop.ini"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("junk")

    assert store.get("cat@1.0").checksum == before
    assert digest_of_package(folder) == package


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


@pytest.mark.parametrize(
    ("file", "owner"),
    [
        ("shared.py", "the worker's"),
        ("ray/__init__.py", "the worker's"),
        ("types.py", "Python's standard library"),
        ("queue.py", "Python's standard library"),
        ("logging/__init__.py", "Python's standard library"),
        ("typing_extensions.py", "the package typing_extensions"),
        ("yaml.py", "the package PyYAML"),
        ("google/__init__.py", "the package "),
    ],
)
def test_module_that_hides_the_hosts_own_is_named(
    store: PluginStore, write_release: Write, file: str, owner: str
) -> None:
    path = write_release("cat@1.0") / file
    path.parent.mkdir(exist_ok=True)
    path.touch()

    name = file.removesuffix("/__init__.py").removesuffix(".py")
    with pytest.raises(ReleaseInvalidError) as caught:
        store.get("cat@1.0")
    assert f"its top-level name is taken by the host: '{name}' ({owner}" in str(caught.value)


IMPORT_AS_PLUGIN_PROCESSES = """
import sys
from importlib import metadata
import ray, ray._private.workers.setup_worker
import worker.plugins.runner, worker.actions.serve_submit, worker.actions.sdk.adapter
import worker.actions, worker.platform
worker.platform.BackendClient("http://h", "t"), worker.platform.AgentClient("http://h", "t")
worker.actions.BaseServeDeployment, worker.actions.ToTaskAction, worker.actions.BaseDeploymentAction
import ray.serve._private.replica
print(*{name.partition(".")[0] for name in sys.modules} & set(metadata.packages_distributions()))
"""


def test_exactly_what_plugin_processes_import_is_taken(store: PluginStore, write_release: Write) -> None:
    # Given what Ray's worker processes, Serve's replicas and our own code in them import at start
    run = [sys.executable, "-c", IMPORT_AS_PLUGIN_PROCESSES]
    imported = set(subprocess.run(run, check=True, capture_output=True, text=True).stdout.split())

    # When a release has a module of the name of each package that is installed here
    release = write_release("cat@1.0")
    names = {name for name in metadata.packages_distributions() if name.isidentifier()}
    for name in names:
        (release / f"{name}.py").touch()
    with pytest.raises(ReleaseInvalidError) as caught:
        store.get("cat@1.0")

    # Then those that are imported are taken, and no other one, such as `six` or `proto`
    taken = {name for name in names if f"'{name}' (" in str(caught.value)}
    assert taken == {name for name in imported & names if not name.startswith("_")}


def test_all_modules_that_hide_others_are_named_at_once(store: PluginStore, write_release: Write) -> None:
    folder = write_release("cat@1.0")
    for name in ("types.py", "queue.py"):
        (folder / name).touch()

    with pytest.raises(ReleaseInvalidError, match=r"'queue' \(.*\), 'types' \("):
        store.get("cat@1.0")


@pytest.mark.parametrize(
    "file", ["test.py", "tests/__init__.py", "plugin/types.py", "google/x.py", "main.py", "pytest.py"]
)
def test_module_that_hides_nothing_is_accepted(store: PluginStore, write_release: Write, file: str) -> None:
    # Given a module deeper in the release, in a namespace, or of a name that nothing of the host's imports
    path = write_release("cat@1.0") / file
    path.parent.mkdir(exist_ok=True)
    path.touch()

    assert store.get("cat@1.0").name == "cat@1.0"


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
    with pytest.raises(PermissionError, match="can be written by others") as caught:
        PluginStore(folder.parent, cache).get("cat@1.0")
    assert blame.in_step(caught.value).owner is blame.Owner.HOST


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.ESTALE, errno.EIO])
def test_failure_of_the_disk_is_not_the_releases(
    store: PluginStore, write_release: Write, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    write_release("cat@1.0")

    def fail(*_: object) -> str:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("worker.plugins.store.release_checksum", fail)
    with pytest.raises(OSError) as caught:
        store.get("cat@1.0")
    assert caught.value.errno == code


def test_file_that_cannot_be_looked_at_is_not_the_releases(
    store: PluginStore, write_release: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a store whose file system answers nothing about a release's config.yaml
    write_release("cat@1.0")
    stat = Path.stat

    def stale(path: Path, **options: bool) -> os.stat_result:
        if path.name == "config.yaml":
            raise OSError(errno.ESTALE, "Stale file handle")
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", stale)

    # Then the release is not said to lack it
    with pytest.raises(OSError, match="Stale file handle"):
        store.get("cat@1.0")


def test_folder_that_cannot_be_listed_has_no_checksum(
    store: PluginStore, write_release: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a folder of a release that the file system does not list
    write_release("cat@1.0")
    scandir = os.scandir

    def stale(path: Path) -> object:
        if Path(path).name == "plugin":
            raise OSError(errno.ESTALE, "Stale file handle")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", stale)

    # Then there is no checksum without its files
    with pytest.raises(OSError, match="Stale file handle"):
        store.get("cat@1.0")


def test_store_that_is_away_lacks_no_release(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PluginStore(tmp_path / "not-mounted", tmp_path / "cache").get("cat@1.0")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        PluginStore(tmp_path / "file", tmp_path / "cache").get("cat@1.0")


def test_store_on_which_nothing_is_mounted_is_away(store: PluginStore) -> None:
    with pytest.raises(FileNotFoundError, match="the plugin store is empty") as caught:
        store.get("cat@1.0")

    assert blame.in_message(caught.value) == blame.Blame(blame.Owner.HOST, blame.Retries.HOUR)


class Trees:
    """A store that is a link, which is swapped from one whole tree to another."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.link = folder / "link"

    def write(self, tree: str, word: str) -> Path:
        release = self._folder / tree / "cat@1.0"
        release.mkdir(parents=True)
        (release / "config.yaml").write_text(
            'code: cat\nversion: "1.0"\nactions: {to_task: {entrypoint: p.T}}\n'
        )
        (release / "p.py").write_text(word)
        for path in release.iterdir():
            os.utime(path, ns=(0, 0))  # as a deployment by rsync may leave them
        return release.parent

    def swap(self, tree: str) -> None:
        new = self._folder / "new"
        new.symlink_to(self._folder / tree)
        new.replace(self.link)


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    made = Trees(tmp_path / "trees")
    made.write("a", "WORD = 1")
    made.write("b", "WORD = 2")
    made.swap("a")
    return made


def test_a_swapped_link_is_followed_anew(trees: Trees, tmp_path: Path) -> None:
    # Given a store that is a link to a tree, which is swapped for one with other content of the same size
    store = PluginStore(trees.link, tmp_path / "cache", stamp_seconds=0)
    old = store.get("cat@1.0")
    trees.swap("b")

    # Then the release is the new one, also when the old tree is gone
    new = store.get("cat@1.0")
    assert new.checksum != old.checksum
    shutil.rmtree(tmp_path / "trees" / "a")
    assert store.get("cat@1.0") == new
    assert store.names() == ["cat@1.0"]


def test_a_link_that_leads_nowhere_is_a_store_that_is_away(trees: Trees, tmp_path: Path) -> None:
    store = PluginStore(trees.link, tmp_path / "cache", stamp_seconds=0)
    store.get("cat@1.0")
    trees.swap("none")
    with pytest.raises(FileNotFoundError):
        store.get("cat@1.0")

    trees.swap("b")
    assert store.get("cat@1.0").name == "cat@1.0"


@pytest.mark.parametrize("missing", ["cat@1.0", "cat@1.0/config.yaml"])
def test_a_tree_that_is_removed_while_it_is_read_is_no_end(
    trees: Trees, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    # Given an old tree that is removed between the look at the link and that at the release
    store = PluginStore(trees.link, tmp_path / "cache", stamp_seconds=0)
    find = store_module._find

    def swap_first(root: Path, name: str) -> Path | None:
        if root.name == "a":
            path = root / missing
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            (root / "dog@1.0").mkdir()
            trees.swap("b")
        return find(root, name)

    monkeypatch.setattr(store_module, "_find", swap_first)

    # Then the release is that of the new tree
    assert store.get("cat@1.0").path == tmp_path / "trees" / "b" / "cat@1.0"


def test_name_that_is_too_long_for_the_disk_is_not_found(store: PluginStore, write_release: Write) -> None:
    write_release("cat@1.0")
    with pytest.raises(ReleaseNotFoundError):
        store.get(f"{'c' * 128}@{'1' * 128}")


def test_archive_whose_name_is_too_long_is_rejected(store: PluginStore, write_release: Write) -> None:
    name = f"{'c' * 125}@{'1' * 125}"
    folder = write_release(name)
    zip_folder(folder)
    folder.rename(folder.parent.parent / "moved")
    with pytest.raises(ReleaseInvalidError, match="cannot be read"):
        store.get(name)


class Looks:
    """Counts how often the files of releases are looked at, and has the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.now = 1000.0
        stamp = store_module.folder_stamp

        def counting(root: Path) -> str:
            self.count += 1
            return stamp(root)

        monkeypatch.setattr(store_module, "folder_stamp", counting)
        monkeypatch.setattr(store_module.time, "monotonic", lambda: self.now)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


def test_files_are_looked_at_once_in_some_seconds(
    plugins_dir: Path, write_release: Write, looks: Looks
) -> None:
    # Given a release that is asked for many times
    folder = write_release("cat@1.0", words="WORD = 1")
    store = PluginStore(plugins_dir)
    first = store.get("cat@1.0")
    for _ in range(100):
        assert store.get("cat@1.0") is first
    assert looks.count == 1

    # When it is replaced, then that is seen some seconds later
    (folder / "plugin" / "words.py").write_text("WORD = 22")
    looks.now += STAMP_SECONDS - 0.1
    assert store.get("cat@1.0") is first
    looks.now += 0.1
    assert store.get("cat@1.0").checksum != first.checksum
    assert looks.count == 2


def test_a_release_that_is_removed_is_not_found_at_once(
    plugins_dir: Path, write_release: Write, looks: Looks
) -> None:
    write_release("cat@2.0")
    folder = write_release("cat@1.0")
    store = PluginStore(plugins_dir)
    store.get("cat@1.0")
    shutil.rmtree(folder)
    with pytest.raises(ReleaseNotFoundError):
        store.get("cat@1.0")


def test_threads_that_ask_at_once_share_a_look(
    plugins_dir: Path, write_release: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a release whose files are looked at while many threads ask for it
    write_release("cat@1.0")
    store = PluginStore(plugins_dir, stamp_seconds=600)
    barrier = threading.Barrier(8)
    count = 0
    stamp = store_module.folder_stamp

    def counting(root: Path) -> str:
        nonlocal count
        count += 1
        return stamp(root)

    monkeypatch.setattr(store_module, "folder_stamp", counting)

    def get(_: int) -> str:
        barrier.wait(60)
        return store.get("cat@1.0").checksum

    # Then one of them looks, and all have the same
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(get, range(8)))) == 1
    assert count == 1
