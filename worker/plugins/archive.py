"""Unpacks the zip of a release, which may be hostile."""

import errno
import fcntl
import lzma
import os
import re
import shutil
import stat
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from worker.plugins.errors import ReleaseInvalidError

_IGNORED_NAMES = frozenset({"__pycache__", ".git", "__macosx", ".ds_store", "desktop.ini", "thumbs.db"})
MAX_ENTRIES = 100_000
CHUNK_BYTES = 1024 * 1024
STALE_SECONDS = 3600
"""A temporary folder older than this was left behind by a killed process."""

MAX_UNPACKED = 20
"""More releases than that are kept only while they are in use."""
MAX_UNUSED_SECONDS = 24 * 60 * 60
MIN_UNUSED_SECONDS = 60 * 60
"""A release that was used within this time may be in use: a worker looks at it again while it is."""
MAX_REMOVED_AT_ONCE = 10

_TEMPORARY = ".unpacking-"
_UNPACKED = re.compile(r"[^@]+@[^@]+-[0-9a-f]{16}")
"""A folder of an unpacked release."""
_ARCHIVE_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    ArithmeticError,
    EOFError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""What zipfile and the decompressors raise for bytes that are no archive."""
_ARCHIVE_ERRNOS = frozenset(
    {
        None,  # bz2's, for bytes that it cannot decompress
        errno.EINVAL,
        errno.EILSEQ,
        errno.ENAMETOOLONG,
        errno.EEXIST,
        errno.EISDIR,
        errno.ENOTDIR,
    }
)
"""Of the errors that follow from an archive's names and offsets; others are this machine's: a full disk."""
_DRIVE = re.compile(r"[A-Za-z]:")


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is no part of a release.

    Running the code and desktops make such files: they change although the release does not.
    """
    return name.lower() in _IGNORED_NAMES or name.startswith("._")


def unpack_release(archive: Path, destination: Path, max_bytes: int) -> None:
    """Unpack `archive` so that `destination` holds its config.yaml; raises `ReleaseInvalidError`.

    The folder appears whole or not at all, even if a process is killed. When two processes unpack the same
    archive, one of them renames its folder first and both use that one. An `OSError` is not the archive's
    fault: the disk is full, or the plugin store is away.
    """
    if mark_used(destination):
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(destination.parent)
    _remove_unused(destination.parent)
    temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=destination.parent))
    try:
        _extract(archive, temporary, max_bytes)
        root = _release_root(temporary)
        root.chmod(0o755)
        try:
            root.rename(destination)
        except OSError:
            if not destination.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(archive: Path, folder: Path, max_bytes: int) -> None:
    try:
        _write_entries(archive, folder, max_bytes)
    except _ARCHIVE_ERRORS as error:
        raise ReleaseInvalidError(f"{archive.name} is not a usable zip: {error}") from None
    except OSError as error:
        if error.errno not in _ARCHIVE_ERRNOS:
            raise
        raise ReleaseInvalidError(f"{archive.name} cannot be unpacked: {error.strerror or error}") from None


def _write_entries(archive: Path, folder: Path, max_bytes: int) -> None:
    with zipfile.ZipFile(archive) as opened:
        entries = opened.infolist()
        if len(entries) > MAX_ENTRIES:
            raise ReleaseInvalidError(f"{archive.name} has more than {MAX_ENTRIES} entries")
        if sum(entry.file_size for entry in entries) > max_bytes:
            raise ReleaseInvalidError(f"{archive.name} is larger than {max_bytes} bytes unpacked")
        seen: set[PurePosixPath] = set()
        left = max_bytes
        for entry in entries:
            path = _checked_path(entry)
            if any(is_ignored(part) for part in path.parts):
                continue
            if path in seen:
                raise ReleaseInvalidError(f"{archive.name} has {entry.filename!r} twice")
            seen.add(path)
            if entry.is_dir():
                (folder / path).mkdir(parents=True, exist_ok=True)
            else:
                left -= _write(opened, entry, folder / path, left)


def _checked_path(entry: zipfile.ZipInfo) -> PurePosixPath:
    """The entry's path inside the release, or `ReleaseInvalidError` when it is hostile."""
    name = entry.orig_filename
    if "\\" in name or "\0" in name or name.startswith("/") or _DRIVE.match(name):
        raise ReleaseInvalidError(f"archive entry {name!r} is not a plain relative path")
    path = PurePosixPath(name)
    if ".." in path.parts:
        raise ReleaseInvalidError(f"archive entry {name!r} leaves the release's folder")
    if entry.flag_bits & 0x1:
        raise ReleaseInvalidError(f"archive entry {name!r} is encrypted")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ReleaseInvalidError(f"archive entry {name!r} is a link or a special file")
    return path


def _write(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path, limit: int) -> int:
    """Write one file and count its bytes, because the size that the archive declares may be wrong."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with opened.open(entry) as source, target.open("xb") as sink:
        while chunk := source.read(CHUNK_BYTES):
            written += len(chunk)
            if written > limit:
                raise ReleaseInvalidError("the archive unpacks to more bytes than it may")
            sink.write(chunk)
    executable = (entry.external_attr >> 16) & 0o100
    target.chmod(0o755 if executable else 0o644)
    return written


def _release_root(folder: Path) -> Path:
    """The folder of config.yaml: the archive's top, or the only folder there."""
    if (folder / "config.yaml").is_file():
        return folder
    inside = list(folder.iterdir())
    if len(inside) == 1 and (inside[0] / "config.yaml").is_file():
        return inside[0]
    raise ReleaseInvalidError("the archive has no config.yaml at its top or in its one top folder")


def mark_used(folder: Path) -> bool:
    """Keep an unpacked release for another while; false when there is none, or none any more."""
    try:
        with _locked(folder, fcntl.LOCK_SH) as descriptor:
            os.utime(descriptor)
            # Another process may have removed it before this one had the lock.
            return os.path.samestat(os.fstat(descriptor), folder.stat())
    except OSError:
        return False


@contextmanager
def _locked(folder: Path, operation: int) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, operation)
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_unused(parent: Path) -> None:
    """Remove unpacked releases that no worker of this host has used for long, and of many the oldest.

    A release that a process holds stays. What stays is looked at again when the next one is unpacked.
    """
    used: list[tuple[float, Path]] = []
    for path in parent.iterdir():
        with suppress(OSError):
            if _UNPACKED.fullmatch(path.name) and path.is_dir():
                used.append((path.stat().st_mtime, path))
    now, removed = time.time(), 0
    for position, (used_at, path) in enumerate(sorted(used, reverse=True)):
        seconds = MIN_UNUSED_SECONDS if position >= MAX_UNPACKED else MAX_UNUSED_SECONDS
        # A thread waits for it, and later ones remove the rest.
        if now - used_at > seconds and removed < MAX_REMOVED_AT_ONCE:
            removed += _remove(path, now - seconds)


def _remove(folder: Path, unused_since: float) -> bool:
    with suppress(OSError), _locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB):
        if folder.stat().st_mtime > unused_since:
            return False
        # It goes at once: nobody is to find half of it.
        temporary = tempfile.mkdtemp(prefix=_TEMPORARY, dir=folder.parent)
        folder.rename(Path(temporary) / folder.name)
        shutil.rmtree(temporary, ignore_errors=True)
        return True
    return False


def _remove_stale(parent: Path) -> None:
    """Remove the temporary folders of killed processes."""
    for path in parent.glob(f"{_TEMPORARY}*"):
        try:
            stale = time.time() - path.stat().st_mtime > STALE_SECONDS
        except OSError:
            continue
        if stale:
            shutil.rmtree(path, ignore_errors=True)
