"""The files of a release: walked once, refused when they lead out, summed up in a checksum."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from worker.plugins.errors import ReleaseInvalidError

IGNORED = frozenset({"__pycache__", ".git"})
"""Not part of a release: they change without it changing."""
CHUNK = 1024 * 1024


def files(root: Path) -> Iterator[tuple[str, Path]]:
    """Every file as (relative path with `/`, path), in one order on every machine.

    Raises `ReleaseInvalidError` for a link that leads out of the release and for what is not a file.
    """
    yield from sorted(_walk(root, root.resolve()))


def _walk(root: Path, real_root: Path) -> Iterator[tuple[str, Path]]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in IGNORED]
        here = Path(folder)
        for name in [*folders, *(name for name in names if name not in IGNORED)]:
            path = here / name
            relative = path.relative_to(root).as_posix()
            if path.is_symlink():
                target = path.resolve()
                if not target.is_relative_to(real_root):
                    raise ReleaseInvalidError(f"link {relative!r} leaves the release's folder")
                if target.is_dir():
                    raise ReleaseInvalidError(
                        f"link {relative!r} stands for a folder; only links to files work"
                    )
            if name in folders:
                continue
            if not path.is_file():
                raise ReleaseInvalidError(f"{relative!r} is not a regular file")
            yield relative, path


def checksum(root: Path, max_bytes: int) -> str:
    """MD5 (a name, not a protection) over paths and contents; refuses more than `max_bytes`."""
    digest = hashlib.md5(usedforsecurity=False)
    total = 0
    for relative, path in files(root):
        size = path.stat().st_size
        total += size
        if total > max_bytes:
            raise ReleaseInvalidError(f"the release is larger than {max_bytes} bytes")
        name = relative.encode("utf-8", "surrogateescape")
        digest.update(f"{len(name)}:{size}:".encode() + name)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def stamp(root: Path) -> str:
    """Changes when a file's time, size or name does: cheap enough for every look-up."""
    digest = hashlib.md5(usedforsecurity=False)
    for relative, path in files(root):
        stat = path.lstat()
        digest.update(f"{relative}\0{stat.st_mtime_ns}\0{stat.st_size}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
