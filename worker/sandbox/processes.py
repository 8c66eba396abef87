"""Start a process, wait until it is ready, end it together with everything that it started.

Each process runs under a supervisor (see `worker.sandbox.supervisor`) in a session of its own: it ends when
it is told to and also when the process that started it is killed. Nothing is ever ended by its name.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

SUPERVISOR: Final = Path(__file__).with_name("supervisor.py")
POLL_SECONDS: Final = 0.05
# Below what the kernel hands out for outgoing connections, so that a port stays free over a restart.
PORTS: Final = range(20_000, 32_000)

FOREIGN: Final = ("SYNAPSE_", "SANDBOX_", "WORKER_", "RAY_", "CELERY_", "REDIS_URL", "PLUGINS_DIR")


class SandboxError(RuntimeError):
    """A part of the sandbox did not start, or ended; the message holds the last lines of its log."""


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Return once `condition` holds; raise `SandboxError` when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SandboxError(f"{what}: not within {seconds:g} s")
        time.sleep(POLL_SECONDS)


_given_ports: set[int] = set()


def free_port() -> int:
    """A port of the loopback on which nobody listens, given to nobody else in this process."""
    while True:
        port = random.choice(PORTS)
        if port in _given_ports:
            continue
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            _given_ports.add(port)
            return port


def own_environment() -> dict[str, str]:
    """This process's environment without what is meant for another worker, Ray or backend."""
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


class Process:
    """A running command: `pid` is its own, so that a test may signal it."""

    def __init__(
        self, name: str, pid: int, guardian: "subprocess.Popen[bytes]", lifeline: int, log: Path
    ) -> None:
        self.name, self.pid, self.log = name, pid, log
        self._guardian, self._lifeline = guardian, lifeline

    @property
    def alive(self) -> bool:
        """Whether the command runs."""
        return self._guardian.poll() is None

    @property
    def exit_code(self) -> int | None:
        """As a shell has it, 128 and the signal's number for one that was killed; None while it runs."""
        return self._guardian.poll()

    def pids(self) -> list[int]:
        """The command's process and everything below it, also what has detached itself."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(self._guardian.pid).children(recursive=True)]
        return []

    def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until `ready` holds; raise with the end of the log when it does not or the command ends."""

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
        """Ask the command to end, wait its time of grace, then end it and everything below it."""
        self._let_go()
        self._guardian.wait()

    def kill(self) -> None:
        """SIGKILL, as if the machine had: the command first, then everything below it."""
        with contextlib.suppress(ProcessLookupError):
            if self.alive:
                os.kill(self.pid, signal.SIGKILL)
        self._guardian.wait()
        self._let_go()

    def _let_go(self) -> None:
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1


def start(
    name: str,
    command: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    grace: float = 5.0,
    scratch: Path | None = None,
) -> Process:
    """Start `command` with its output appended to `log`.

    SIGTERM is given `grace` seconds, 0 means none; the folder `scratch` is removed after the end.
    """
    ours, lifeline = os.pipe()
    with log.open("ab") as output:
        guardian = subprocess.Popen(
            # -I keeps this folder's modules from hiding others' (redis, ray).
            [sys.executable, "-I", str(SUPERVISOR), str(ours), str(grace), str(scratch or ""), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            env=None if env is None else dict(env),
            cwd=cwd,
            pass_fds=(ours,),
            start_new_session=True,
        )
    os.close(ours)
    assert guardian.stdout is not None
    with guardian.stdout:
        pid = guardian.stdout.readline()
    if not pid:
        os.close(lifeline)
        guardian.wait()
        raise SandboxError(f"{name} did not start\n{log.read_text(errors='replace')[-2000:]}")
    return Process(name, int(pid), guardian, lifeline, log)
