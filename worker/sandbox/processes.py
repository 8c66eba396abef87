"""Start a process, wait until it is ready, and end it together with its descendants.

Each process runs under a supervisor (see `worker.sandbox.supervisor`) in a session of its own: it ends when
it is stopped, and also when the process that started it is killed. Processes are never ended by name.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

SUPERVISOR: Final = Path(__file__).with_name("supervisor.py")
POLL_SECONDS: Final = 0.05
MAX_START_SECONDS: Final = 180.0
"""For a server to be ready: all start at once, and a busy machine takes minutes. An end is noticed sooner."""
# Below the kernel's range for outgoing connections, so that a port stays free while a server restarts.
PORT_RANGE: Final = range(20_000, 32_000)

SETTINGS_PREFIXES: Final = ("SYNAPSE_", "SANDBOX_", "WORKER_", "RAY_", "CELERY_", "REDIS_URL", "PLUGINS_DIR")


class SandboxError(RuntimeError):
    """A process of the sandbox did not start, or ended; the message holds the last lines of its log."""


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Return once `condition` holds; raise `SandboxError` when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SandboxError(f"{what} (waited {seconds:g} s)")
        time.sleep(POLL_SECONDS)


MIN_FREE_BYTES: Final = 300 * 1024 * 1024
"""In the temporary directory: logs, Redis's file, and Ray's objects where they find no shared memory."""


TEMP_DIR_ADVICE: Final = "Free some space, or set TMPDIR to another folder"


def make_temp_dir(prefix: str, dir: Path | None = None) -> Path:
    """A new folder in `dir`, by default the temporary directory; raises `SandboxError` where it is full."""
    parent = dir or temp_root()
    try:
        free = shutil.disk_usage(parent).free
        if free >= MIN_FREE_BYTES:
            return Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    except OSError as error:
        raise _no_temp_dir(error) from None
    needed = MIN_FREE_BYTES // 1024**2
    raise SandboxError(f"{parent} has {free // 1024**2} MB left, and {needed} are needed\n{TEMP_DIR_ADVICE}")


def temp_root() -> Path:
    """The temporary directory; raises `SandboxError` where none can be written."""
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        raise _no_temp_dir(error) from None


def _no_temp_dir(error: OSError) -> SandboxError:
    return SandboxError(f"no temporary folder can be made: {error.strerror or error}\n{TEMP_DIR_ADVICE}")


_used_ports: set[int] = set()
_claims: Final[deque[int]] = deque()
MAX_CLAIMS: Final = 64
"""More ports than servers of one process are starting at once."""


def free_port() -> int:
    """A loopback port on which no process listens, and which this function has not returned before.

    On Linux it is claimed meanwhile, because seconds pass until a server listens: no other process of this
    machine gets it before this one has asked for 64 more, or has ended.
    """
    while True:
        port = random.choice(PORT_RANGE)
        if port in _used_ports or not _claim(port):
            continue
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            _used_ports.add(port)
            return port


def _claim(port: int) -> bool:
    """Whether the port is claimed by no other process; from now on it is by this one."""
    if sys.platform != "linux":
        return True
    with socket.socket(socket.AF_UNIX) as claim:
        try:
            # An abstract address: no file, and free again when the last process that holds it has ended.
            claim.bind(f"\0synapse-worker-port-{port}")
        except OSError:
            return False
        _claims.append(claim.detach())
    if len(_claims) > MAX_CLAIMS:
        os.close(_claims.popleft())
    return True


def clean_environment() -> dict[str, str]:
    """This process's environment without the settings of a worker, a Ray or a backend."""
    return {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS_PREFIXES)}


def is_listening(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server accepts connections at this address."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


class Process:
    """A running command. `pid` is that of the command and not of its supervisor, for tests that signal it."""

    def __init__(
        self, name: str, pid: int, supervisor: "subprocess.Popen[bytes]", owner_pipe: int, log: Path
    ) -> None:
        self.name, self.pid, self.log = name, pid, log
        self._supervisor, self._owner_pipe = supervisor, owner_pipe

    @property
    def alive(self) -> bool:
        """Whether the command runs."""
        return self._supervisor.poll() is None

    @property
    def exit_code(self) -> int | None:
        """As in a shell: 128 plus the signal's number after a kill; None while the command runs."""
        return self._supervisor.poll()

    def pids(self) -> list[int]:
        """The command's process and its descendants, including detached daemons."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(self._supervisor.pid).children(recursive=True)]
        return []

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until `ready` holds; raise `SandboxError` after `seconds` or when the command ends before."""

        def ready_or_ended() -> bool:
            return not self.alive or ready()

        try:
            wait_for(ready_or_ended, seconds, f"{self.name} was not ready")
        except SandboxError as error:
            raise SandboxError(f"{error}\n{self.tail()}") from None
        if not self.alive:
            raise SandboxError(f"{self.name} ended before it was ready\n{self.tail()}")

    def tail(self, lines: int = 30) -> str:
        """The last lines of the log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def stop(self) -> None:
        """Send SIGTERM, wait for the grace period, then kill the command and its descendants."""
        self._close_owner_pipe()
        self._supervisor.wait()

    def kill(self) -> None:
        """Send SIGKILL to the command, as a crash would end it, then kill its descendants."""
        with contextlib.suppress(ProcessLookupError):
            if self.alive:
                os.kill(self.pid, signal.SIGKILL)
        self._supervisor.wait()
        self._close_owner_pipe()

    def _close_owner_pipe(self) -> None:
        if self._owner_pipe >= 0:
            os.close(self._owner_pipe)
            self._owner_pipe = -1


def start_process(
    name: str,
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    grace_seconds: float = 5.0,
    scratch_dir: Path | None = None,
) -> Process:
    """Start `command` with its output appended to `log`.

    A stop sends SIGTERM and kills after `grace_seconds`; with 0 it kills at once. The folder `scratch_dir` is
    removed after the end.
    """
    supervisor_end, owner_end = os.pipe()
    with log.open("ab") as output:
        supervisor = subprocess.Popen(
            # -I: modules of this folder must not shadow libraries.
            [
                sys.executable,
                "-I",
                str(SUPERVISOR),
                str(supervisor_end),
                str(grace_seconds),
                str(scratch_dir or ""),
                *command,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            env=None if env is None else dict(env),
            cwd=cwd,
            pass_fds=(supervisor_end,),
            start_new_session=True,
        )
    os.close(supervisor_end)
    assert supervisor.stdout is not None
    with supervisor.stdout:
        pid = supervisor.stdout.readline()
    if not pid:
        os.close(owner_end)
        supervisor.wait()
        raise SandboxError(f"{name} did not start\n{log.read_text(errors='replace')[-2000:]}")
    return Process(name, int(pid), supervisor, owner_end, log)
