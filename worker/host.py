"""What workers share with others on their host: process numbers, and folders of the temporary directory."""

import errno
import fcntl
import os
import stat
from contextlib import suppress
from pathlib import Path


def make_private(folder: Path, root: Path | None = None) -> None:
    """Make this folder, and those above it up to `root`, for this user alone; others are made as they come.

    Raises `PermissionError` where another user has made one before, who could lead this process elsewhere by
    a link, or where others can write one, whose content may be run; and any other `OSError`.
    """
    levels = [level for level in reversed(folder.parents) if root in (level, *level.parents)] + [folder]
    levels[0].parent.mkdir(parents=True, exist_ok=True)
    for level in levels:
        with suppress(FileExistsError):
            level.mkdir(mode=0o700)
        found = level.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "it belongs to another user", str(level))
        if found.st_mode & 0o022:
            reason = "it can be written by others: remove it, or make it this user's alone"
            raise PermissionError(errno.EPERM, reason, str(level))


def hold_folder(folder: Path) -> None:
    """Keep others of this host from removing a folder, for as long as this process lives."""
    with suppress(OSError):
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)


def is_running(pid: int, started: int | None = None) -> bool:
    """Whether there is a process of this number, and, where it is known, with this start."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return started is None or process_start(pid) in (started, None)


def process_start(pid: int) -> int | None:
    """When the process started, in ticks since the boot; None where that cannot be read."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None
