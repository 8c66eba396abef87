"""What workers share with others on their host: process numbers, and the temporary directory."""

import errno
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path


def states_root() -> Path:
    """The folder of all states of this user's workers; raises `OSError` without a temporary directory."""
    return Path(tempfile.gettempdir()) / f"synapse-worker-states-{os.getuid()}"


def make_private(folder: Path) -> None:
    """Make this folder of `states_folder`, and those above it, for this user alone.

    Raises `OSError` where another user has made one before, who could lead this process elsewhere by a link.
    """
    root = states_root()
    above = [level for level in reversed(folder.parents) if level == root or root in level.parents]
    for level in (*above, folder):
        with suppress(FileExistsError):
            level.mkdir(mode=0o700)
        found = level.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "it belongs to another user", str(level))


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
