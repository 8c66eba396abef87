"""The plugin store: releases by their name `code@version`, their files and checksums."""

import errno
import hashlib
import os
import re
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from worker.host import make_private
from worker.per_process import RecentlyUsed
from worker.plugins import config
from worker.plugins.archive import is_ignored, mark_used, unpack_release
from worker.plugins.config import ActionConfig, ReleaseConfig
from worker.plugins.errors import PluginError, ReleaseInvalidError, ReleaseNotFoundError
from worker.plugins.module_names import check_module_names
from worker.plugins.requirements import installation
from worker.settings import MB

CHUNK_BYTES = 1024 * 1024


def release_files(root: Path) -> Iterator[tuple[str, Path]]:
    """Every file as (relative path with `/`, path), in the same order on every machine.

    Raises `ReleaseInvalidError` for a link that leads out of the release and for special files, and `OSError`
    for a folder that cannot be read: a checksum without its files would name another release.
    """
    yield from sorted(_walk(root, root.resolve()))


def _walk(root: Path, real_root: Path) -> Iterator[tuple[str, Path]]:
    for folder, folders, names in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if not is_ignored(name)]
        here = Path(folder)
        for name in [*folders, *(name for name in names if not is_ignored(name))]:
            path = here / name
            relative = path.relative_to(root).as_posix()
            if path.is_symlink():
                target = path.resolve()
                if not target.is_relative_to(real_root):
                    raise ReleaseInvalidError(f"link {relative!r} leaves the release's folder")
                if target.is_dir():
                    raise ReleaseInvalidError(
                        f"link {relative!r} is a link to a folder; only links to files work"
                    )
            if name in folders:
                continue
            if not stat.S_ISREG(_mode(path)):
                raise ReleaseInvalidError(f"{relative!r} is not a regular file")
            yield relative, path


def _raise(error: OSError) -> NoReturn:
    raise error


def _mode(path: Path) -> int:
    """The mode of what `path` leads to; 0 for nothing. Raises `OSError` when it cannot be read.

    `Path.is_file` and `Path.is_dir` answer no, in some versions of Python, where the file system has failed.
    """
    try:
        return path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            return 0
        raise


def release_checksum(root: Path, max_bytes: int) -> str:
    """MD5 over paths and contents; raises `ReleaseInvalidError` for more than `max_bytes`.

    It names the release's content and protects nothing.
    """
    digest = ReleaseDigest()
    total = 0
    for relative, path in release_files(root):
        size = path.stat().st_size
        total += size
        if total > max_bytes:
            raise ReleaseInvalidError(f"the release is larger than {max_bytes} bytes")
        digest.begin_file(relative, size)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


class ReleaseDigest:
    """The digest behind `release_checksum`, for whoever reads the files in the order of `release_files`."""

    def __init__(self) -> None:
        self._digest = hashlib.md5(usedforsecurity=False)
        self.update, self.hexdigest = self._digest.update, self._digest.hexdigest

    def begin_file(self, relative: str, size: int) -> None:
        """A file of `size` bytes follows."""
        name = relative.encode("utf-8", "surrogateescape")
        self._digest.update(f"{len(name)}:{size}:".encode() + name)


def folder_stamp(root: Path) -> str:
    """A digest that changes with any file's time, size or name; cheap enough for every look-up."""
    digest = hashlib.md5(usedforsecurity=False)
    for relative, path in release_files(root):
        found = path.lstat()
        digest.update(
            f"{relative}\0{found.st_mtime_ns}\0{found.st_size}\0".encode("utf-8", "surrogateescape")
        )
    return digest.hexdigest()


MAX_BYTES = 512 * MB

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}"
_NAME = re.compile(rf"{_PART}@{_PART}")


@dataclass(frozen=True)
class Release:
    """A release, verified and unpacked. `path` is the folder of config.yaml, `checksum` covers all files."""

    code: str
    version: str
    name: str
    path: Path
    config: ReleaseConfig
    checksum: str

    def action(self, name: str) -> ActionConfig:
        """What config.yaml declares for an action; raises `ReleaseInvalidError` for an unknown one."""
        try:
            return self.config.actions[name]
        except KeyError:
            known = ", ".join(sorted(self.config.actions)) or "none"
            raise ReleaseInvalidError(f"{self.name} has no action {name!r} (it has: {known})") from None


STAMP_SECONDS = 5.0
"""For how long a release is taken to be as it was found: its files are looked at no more often."""


@dataclass(frozen=True)
class _Known:
    """A release as it was loaded, and when its files were last looked at (monotonic clock)."""

    stamp: str
    release: Release
    looked_at: float


class PluginStore:
    """Finds, verifies and unpacks releases. Safe for threads and for several processes.

    A release that is replaced or removed is noticed `stamp_seconds` later.
    """

    def __init__(
        self,
        directory: Path,
        cache_dir: Path | None = None,
        max_bytes: int = MAX_BYTES,
        stamp_seconds: float = STAMP_SECONDS,
    ) -> None:
        self.directory = directory
        self._stamp_seconds = stamp_seconds
        default = Path(tempfile.gettempdir()) / f"synapse-worker-{os.getuid()}"
        self._cache_dir = cache_dir or default
        self._max_bytes = max_bytes
        self._known: RecentlyUsed[str, _Known] = RecentlyUsed()
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """The names of all releases, sorted, including the invalid ones."""
        root = self._root()
        found = {path.name.removesuffix(".zip") for path in root.iterdir()}
        return sorted(name for name in found if _NAME.fullmatch(name) and _find(root, name) is not None)

    def get(self, name: str) -> Release:
        """The release `code@version`; raises `ReleaseNotFoundError` or `ReleaseInvalidError`.

        An `OSError` says nothing about the release: the store is away or empty, or the cache's disk is full.
        """
        if (recent := self._recently_found(name)) is not None:
            return recent
        if not _NAME.fullmatch(name) or ".." in name:
            raise ReleaseNotFoundError(f"{name[:300]!r} is not a release's name: it must be code@version")
        root = self._root()
        while True:
            try:
                return self._get_in(root, name)
            except PluginError:
                # The link may have been swapped meanwhile, and its old tree be half removed.
                if (now := self._root()) == root:
                    raise
                root = now

    def _root(self) -> Path:
        """Where `directory`, which may be a link that is swapped, leads to now; raises `OSError`."""
        root = Path(os.path.realpath(self.directory, strict=True))
        if not stat.S_ISDIR(root.stat().st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.directory))
        return root

    def _get_in(self, root: Path, name: str) -> Release:
        source = _find(root, name)
        if source is None:
            if not any(root.iterdir()):
                # Such as the folder on which nothing is mounted at the moment.
                raise FileNotFoundError(errno.ENOENT, "the plugin store is empty", str(self.directory))
            raise ReleaseNotFoundError(f"the plugin store has no release {name!r}")
        with self._lock:
            # Of the threads that waited for the lock one has looked.
            if (recent := self._recently_found(name)) is not None:
                return recent
            looked_at = time.monotonic()
            try:
                # Two trees may hold files of the same times and sizes.
                stamp = f"{source}:{release_stamp(source)}"
                known = self._known.get(name)
                if known is None or known.stamp != stamp or not _is_there(known.release, source):
                    release = self._load(name, source)
                else:
                    release = known.release
            except PluginError as error:
                raise type(error)(f"{name}: {error}") from None
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
                raise ReleaseInvalidError(f"{name} cannot be read: {error.strerror}") from None
            self._known[name] = _Known(stamp, release, looked_at)
        return release

    def _recently_found(self, name: str) -> Release | None:
        """The release, if its files were looked at a moment ago and its folder is still there."""
        known = self._known.get(name)
        if known is None or time.monotonic() - known.looked_at >= self._stamp_seconds:
            return None
        return known.release if known.release.path.is_dir() else None

    def _load(self, name: str, source: Path) -> Release:
        folder = source if source.is_dir() else self._unpacked(name, source)
        config_file = folder / "config.yaml"
        if config_file.is_symlink() or not stat.S_ISREG(_mode(config_file)):
            raise ReleaseInvalidError("has no config.yaml")
        with config_file.open("rb") as file:
            declared = config.parse_release_config(file.read(config.MAX_CONFIG_BYTES + 1))
        code, _, version = name.partition("@")
        if (declared.code, declared.version) != (code, version):
            raise ReleaseInvalidError(f"config.yaml says {declared.code}@{declared.version}")
        check_module_names(folder)
        installation(folder, declared)
        digest = release_checksum(folder, self._max_bytes)
        return Release(code, version, name, folder.resolve(), declared, digest)

    def _unpacked(self, name: str, archive: Path) -> Path:
        """The folder of the archive's unpacked content, whose name changes with every byte of it."""
        if archive.stat().st_size > self._max_bytes:
            raise ReleaseInvalidError(f"the archive is larger than {self._max_bytes} bytes")
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        make_private(self._cache_dir)  # its content is run
        folder = self._cache_dir / f"{name}-{digest[:16]}"
        unpack_release(archive, folder, self._max_bytes)
        return folder


def _is_there(release: Release, source: Path) -> bool:
    """Whether the release's folder is; an unpacked one is kept for another while."""
    return release.path.is_dir() if source.is_dir() else mark_used(release.path)


def _find(root: Path, name: str) -> Path | None:
    for path, is_kind in ((root / name, stat.S_ISDIR), (root / f"{name}.zip", stat.S_ISREG)):
        if is_kind(_mode(path)) and path.resolve().is_relative_to(root):
            return path
    return None


def release_stamp(source: Path) -> str:
    """What changes with a release, a folder or a zip; cheap enough for every look-up."""
    if source.is_dir():
        return folder_stamp(source)
    found = source.stat()
    return f"{found.st_mtime_ns}:{found.st_size}:{found.st_ino}"
