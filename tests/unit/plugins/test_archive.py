"""Hostile archives: nothing is written outside of the folder, no partial folder remains."""

import errno
import os
import random
import stat
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from worker.plugins import ReleaseInvalidError
from worker.plugins.archive import (
    MAX_UNPACKED,
    MAX_UNUSED_SECONDS,
    MIN_UNUSED_SECONDS,
    mark_used,
    unpack_release,
)

MB = 1024 * 1024


def make_zip(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (("config.yaml", b"code: x"), *entries):
            archive.writestr(name, content)
    return path


def special(name: str, mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    return entry


def test_config_may_be_at_the_top_or_in_the_only_folder(tmp_path: Path) -> None:
    unpack_release(make_zip(tmp_path / "top.zip", ("plugin/x.py", b"1")), tmp_path / "out" / "top", MB)
    assert (tmp_path / "out" / "top" / "plugin" / "x.py").read_bytes() == b"1"
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.writestr("cat@1.0/config.yaml", "code: x")
        archive.writestr("cat@1.0/plugin/x.py", "1")
    unpack_release(tmp_path / "one.zip", tmp_path / "out" / "one", MB)
    assert (tmp_path / "out" / "one" / "config.yaml").is_file()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["one", "top"]


JUNK = [
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "Desktop.ini",
    "__MACOSX/._config.yaml",
    "._x",
    "plugin/.DS_Store",
    "plugin/__pycache__/x.pyc",
]


def test_files_of_desktops_are_left_out(tmp_path: Path) -> None:
    # Given an archive made of one folder by a desktop, with its own files beside the folder and within
    with zipfile.ZipFile(tmp_path / "cat.zip", "w") as archive:
        for name in ("cat@1.0/config.yaml", "cat@1.0/plugin/x.py"):
            archive.writestr(name, "code: x")
        for name in JUNK:
            archive.writestr(name, "junk")
            archive.writestr(f"cat@1.0/{name}", "junk")

    # Then the release has only its own
    unpack_release(tmp_path / "cat.zip", tmp_path / "out", MB)
    files = [path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert sorted(map(str, files)) == ["config.yaml", "plugin/x.py"]


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "plugin/../../evil",
        "/etc/evil",
        "C:/evil",
        "C:evil",
        "..\\evil",
        "plugin\\..\\evil",
        "a/..",
    ],
)
def test_entry_outside_of_the_folder_is_rejected(tmp_path: Path, name: str) -> None:
    archive = make_zip(tmp_path / "bad.zip", (name, b"evil"))
    with pytest.raises(ReleaseInvalidError, match="archive entry"):
        unpack_release(archive, tmp_path / "out" / "bad", MB)
    assert list((tmp_path / "out").iterdir()) == []
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_special_files_are_rejected(tmp_path: Path, kind: int) -> None:
    archive = make_zip(tmp_path / "bad.zip", (special("link", kind | 0o777), b"/etc/passwd"))
    with pytest.raises(ReleaseInvalidError, match="a link or a special file"):
        unpack_release(archive, tmp_path / "out" / "bad", MB)


def test_bomb_is_rejected_by_its_declared_size(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "bomb.zip", ("zeros", b"\0" * 4 * MB))
    assert archive.stat().st_size < 20_000
    with pytest.raises(ReleaseInvalidError, match="larger than"):
        unpack_release(archive, tmp_path / "out" / "bomb", MB)


def test_bomb_with_a_false_size_is_rejected(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "bomb.zip", ("zeros", b"\0" * 4 * MB))
    content = archive.read_bytes().replace(struct.pack("<L", 4 * MB), struct.pack("<L", 10))
    archive.write_bytes(content)
    with pytest.raises(ReleaseInvalidError):
        unpack_release(archive, tmp_path / "out" / "bomb", MB)
    assert list((tmp_path / "out").iterdir()) == []


def test_duplicate_name_is_rejected(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive = make_zip(tmp_path / "bad.zip", ("x", b"1"), ("x", b"2"))
    with pytest.raises(ReleaseInvalidError, match="twice"):
        unpack_release(archive, tmp_path / "out" / "bad", MB)


def test_file_that_is_also_a_folder_is_rejected(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "bad.zip", ("x", b"1"), ("x/y", b"2"))
    with pytest.raises(ReleaseInvalidError, match="cannot be unpacked"):
        unpack_release(archive, tmp_path / "out" / "bad", MB)


def test_name_that_is_too_long_is_rejected(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "bad.zip", ("x" * 300, b"1"))
    with pytest.raises(ReleaseInvalidError, match="cannot be unpacked"):
        unpack_release(archive, tmp_path / "out" / "bad", MB)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_failure_of_the_disk_is_not_the_archives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    # Given a disk that takes no more bytes
    archive = make_zip(tmp_path / "good.zip")

    def fail(*_: object) -> int:
        raise OSError(code, "the disk failed")

    monkeypatch.setattr("worker.plugins.archive._write", fail)

    # Then the error leaves as it is, and no partial folder remains
    with pytest.raises(OSError, match="the disk failed"):
        unpack_release(archive, tmp_path / "out" / "good", MB)
    assert list((tmp_path / "out").iterdir()) == []


def test_encrypted_entry_is_rejected(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "bad.zip")
    content = bytearray(archive.read_bytes())
    central = content.index(b"PK\x01\x02")
    content[6] |= 1
    content[central + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(ReleaseInvalidError, match="encrypted"):
        unpack_release(archive, tmp_path / "out" / "bad", MB)


def test_too_many_entries_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.plugins.archive.MAX_ENTRIES", 3)
    archive = make_zip(tmp_path / "bad.zip", *((str(n), b"") for n in range(3)))
    with pytest.raises(ReleaseInvalidError, match="more than 3 entries"):
        unpack_release(archive, tmp_path / "out" / "bad", MB)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no", b"not a zip at all"])
def test_file_that_is_no_zip_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.zip").write_bytes(content)
    with pytest.raises(ReleaseInvalidError, match="not a usable zip"):
        unpack_release(tmp_path / "bad.zip", tmp_path / "out" / "bad", MB)


def test_broken_entry_is_rejected(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "bad.zip", ("x", b"hello" * 100))
    content = bytearray(archive.read_bytes())
    second = content.index(b"PK\x03\x04", 10)
    content[second + 31 : second + 36] = b"\xff" * 5  # the compressed bytes behind the name `x`
    archive.write_bytes(content)
    with pytest.raises(ReleaseInvalidError):
        unpack_release(archive, tmp_path / "out" / "bad", MB)


def test_name_that_is_no_text_is_rejected(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "bad.zip", ("plü.py", b"1"))
    archive.write_bytes(archive.read_bytes().replace("ü".encode(), b"\xc3\xc3"))
    with pytest.raises(ReleaseInvalidError, match="not a usable zip"):
        unpack_release(archive, tmp_path / "out" / "bad", MB)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_entry_that_cannot_be_decompressed_is_rejected(tmp_path: Path, packing: int) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w", packing) as archive:
        archive.writestr("config.yaml", b"hello" * 100)
    content = bytearray(path.read_bytes())
    packed = len(b"config.yaml") + 30
    content[packed : packed + 20] = b"\xff" * 20
    path.write_bytes(content)
    with pytest.raises(ReleaseInvalidError):
        unpack_release(path, tmp_path / "out" / "bad", MB)


@pytest.mark.parametrize("seed", range(200))
def test_damaged_archive_is_read_or_rejected(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    packings = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    with zipfile.ZipFile(tmp_path / "bad.zip", "w", rng.choice(packings)) as archive:
        for name, text in (("config.yaml", "code: x"), ("plü/x.py", "abc" * 300), ("d/", "")):
            archive.writestr(name, text)
    content = bytearray((tmp_path / "bad.zip").read_bytes())
    for _ in range(rng.choice((1, 1, 2, 4))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    (tmp_path / "bad.zip").write_bytes(content)
    release = tmp_path / "out" / "bad"

    try:
        unpack_release(tmp_path / "bad.zip", release, MB)
    except ReleaseInvalidError:
        assert not release.exists()
    else:
        assert (release / "config.yaml").is_file()
    assert [path.name for path in release.parent.iterdir() if path != release] == []


def test_archive_without_config_is_rejected(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("a/x", "1")
        archive.writestr("b/config.yaml", "1")
    with pytest.raises(ReleaseInvalidError, match=r"no config\.yaml"):
        unpack_release(tmp_path / "bad.zip", tmp_path / "out" / "bad", MB)


def test_folder_of_another_process_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mark").touch()
    unpack_release(tmp_path / "absent.zip", tmp_path / "out", MB)
    assert (tmp_path / "out" / "mark").exists()


class Cache:
    """A folder with unpacked releases, by number."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "cache"
        self._archive = make_zip(folder / "release.zip")

    def path(self, number: int) -> Path:
        return self._folder / f"cat@1.{number}-{number:016x}"

    def unpack(self, number: int, used_seconds_ago: float = 0.0) -> Path:
        unpack_release(self._archive, self.path(number), MB)
        used_at = time.time() - used_seconds_ago
        os.utime(self.path(number), (used_at, used_at))
        return self.path(number)

    def names(self) -> set[str]:
        return {path.name for path in self._folder.iterdir()}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


def test_release_that_nobody_has_used_for_a_day_is_removed(cache: Cache) -> None:
    old, recent = cache.unpack(1, MAX_UNUSED_SECONDS + 60), cache.unpack(2, MAX_UNUSED_SECONDS - 60)

    new = cache.unpack(3)

    assert not old.exists()
    assert cache.names() == {recent.name, new.name}


def test_of_many_releases_those_used_last_are_kept(cache: Cache) -> None:
    # Given more releases than are kept, some of which may be in use
    for number in range(MAX_UNPACKED + 5):
        cache.unpack(number, 60 if number < MAX_UNPACKED + 2 else MIN_UNUSED_SECONDS + number)

    # When another one is unpacked, then only those go that are not
    new = cache.unpack(99)

    assert cache.names() == {cache.path(number).name for number in range(MAX_UNPACKED + 2)} | {new.name}


def test_release_that_is_used_again_is_kept(cache: Cache) -> None:
    used = cache.unpack(1, MAX_UNUSED_SECONDS + 60)

    assert mark_used(used)
    cache.unpack(2)

    assert (used / "config.yaml").is_file()


def test_release_that_a_process_holds_is_kept(cache: Cache) -> None:
    # Given a release whose code has run in a child process for longer than a day
    held = cache.unpack(1, MAX_UNUSED_SECONDS + 60)
    program = "import sys, worker.host as host; host.hold_folder(host.Path(sys.argv[1])); print(); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", program, held], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"\n"
        os.utime(held, (0, 0))

        # When another one is unpacked, then it stays
        cache.unpack(2)
        assert (held / "config.yaml").is_file()
    finally:
        child.kill()
        child.communicate()

    # And it goes once the process has ended
    cache.unpack(3)
    assert not held.exists()


def test_removed_release_is_not_used(cache: Cache) -> None:
    assert not mark_used(cache.path(1))


def test_nothing_else_in_the_folder_is_removed(cache: Cache) -> None:
    other = cache.unpack(1).with_name("cat@1.0")
    other.mkdir()
    os.utime(other, (0, 0))

    cache.unpack(2)

    assert other.is_dir()
