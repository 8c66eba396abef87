"""The states that the workers of this host write for `synapse-worker live` and `ready`.

Each worker keeps one small JSON file in a folder of the temporary directory. A probe reads files: it asks
neither the broker nor Redis, so it ends within a second whatever is away, and imports next to nothing.
"""

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

from worker.host import is_running, make_private

SECONDS_BETWEEN_WRITES: Final = 2.5
MAX_SILENT_SECONDS: Final = 20.0
"""A worker whose file is older, or whose event loop has not turned for as long, hangs."""

_IDENTITY: Final = ("REDIS_URL", "CELERY_BROKER_URL", "WORKER_REDIS_PREFIX")
"""Settings in which installations on one host differ; of one in a file the path, as texts are exchanged."""


@dataclass(frozen=True)
class WorkerState:
    """What a worker last wrote. Times are of this host's monotonic clock, in seconds."""

    name: str
    pid: int
    written_at: float
    is_connected: bool
    """Whether it consumes from its broker, and does not stop."""
    turned_at: float | None
    """When its event loop last turned; None where the loop is not watched."""
    started: int | None = None
    """When its process started, in ticks since the boot: another process may get its number."""

    def why_not_live(self, now: float) -> str | None:
        """Why it should be started anew; None for a worker that lives. A lost broker is no reason."""
        # A time to come was written before this host was started anew.
        if self.written_at > now or not is_running(self.pid, self.started):
            return "its process is gone"
        if now - self.written_at > MAX_SILENT_SECONDS:
            return f"its process has not run for {now - self.written_at:.0f} s"
        if self.is_connected and self.turned_at is not None and now - self.turned_at > MAX_SILENT_SECONDS:
            return f"its event loop has not turned for {now - self.turned_at:.0f} s"
        return None

    def why_not_ready(self, now: float) -> str | None:
        """Why it fetches no messages; None for one that does."""
        return self.why_not_live(now) or (None if self.is_connected else "it is not connected to its broker")

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a state; raises `ValueError` for anything else."""
        try:
            state = cls(**json.loads(text))
            is_valid = 0 < state.pid < 2**31 and isinstance(state.name, str) and state.written_at >= 0
        except (TypeError, RecursionError):
            is_valid = False
        if not is_valid:
            raise ValueError("not the state of a worker")
        return state


def states_root() -> Path:
    """The folder of all states of this user's workers; raises `OSError` without a temporary directory."""
    return Path(tempfile.gettempdir()) / f"synapse-worker-states-{os.getuid()}"


def states_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of the states of this user's workers with these settings; it need not exist.

    Raises `OSError` where there is no temporary directory at all.
    """
    values = [environ.get(name) or environ.get(f"{name}_FILE", "") for name in _IDENTITY]
    identity = "\n".join(values)
    return states_root() / hashlib.sha256(identity.encode()).hexdigest()[:12]


class StateFile:
    """The file of one worker's state."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._path = folder / f"{re.sub(r'[^A-Za-z0-9_.@-]', '_', name)}.json"

    def write(self, state: WorkerState) -> None:
        """Replace the state; raises `OSError` when the folder cannot be written, or is another user's."""
        make_private(self._folder, states_root())
        draft = self._path.with_suffix(f".{state.pid}")
        draft.write_text(json.dumps(asdict(state)), encoding="utf-8")
        draft.replace(self._path)

    def remove(self) -> None:
        """Remove it, as the worker has ended."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)


def read_states(folder: Path) -> Iterator[WorkerState]:
    """The states in this folder, by name. What is no state is left out: a worker writes it anew at once."""
    for path in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError):
            yield WorkerState.from_json(path.read_text(encoding="utf-8"))


def remove_states_of_ended(folder: Path) -> None:
    """Remove the states that killed workers have left, which might have had other names.

    What has the number of this process is of one before it: in a container each worker has the same.
    """
    for state in read_states(folder):
        if state.pid == os.getpid() or not is_running(state.pid, state.started):
            StateFile(folder, state.name).remove()


def problems(states: list[WorkerState], *, ready: bool) -> list[str]:
    """A line for each worker that is not live, or not ready; one line when there is no worker at all."""
    now = time.monotonic()
    found = []
    for state in states:
        why = state.why_not_ready(now) if ready else state.why_not_live(now)
        if why is not None:
            found.append(f"{state.name}: {why}")
    return found if states else ["no worker with these settings runs on this host"]
