"""Runs one command, and ends it and all its descendants when the owner ends.

Started by `worker.sandbox.processes` as a plain script that needs only the standard library. The owner holds
the other end of a pipe, which the kernel closes when the owner ends, however it ends. Then, or when the
command has ended, all descendants of this process are killed. It is a subreaper: the kernel makes it, and not
init, the parent of a daemon that detaches itself. It prints the pid of the command to stdout.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def prctl(option: int, value: int) -> None:
    """Linux's prctl; does nothing on other systems, where daemons that detach themselves are not found."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def descendants() -> list[int]:
    """The pids of all descendants of this process, including zombies."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name in parentheses may contain any character; after it come the state and the parent.
            parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        children.setdefault(int(parent), []).append(int(entry.name))
    found: list[int] = []
    pending = [os.getpid()]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


def signal_all(pids: list[int], number: signal.Signals) -> None:
    """Signal each process; one that has just ended is no error."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


class Supervisor:
    """One command, its descendants, and the pipe of the owner."""

    def __init__(self, owner_pipe: int, grace_seconds: float, scratch_dir: str, command: list[str]) -> None:
        self._owner_pipe, self._grace_seconds, self._scratch_dir = owner_pipe, grace_seconds, scratch_dir
        self._status: int | None = None
        self._must_end = False
        self._wakeup, signals = os.pipe()
        os.set_blocking(signals, False)
        signal.set_wakeup_fd(signals, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            stderr=sys.stderr,
            start_new_session=True,
            preexec_fn=self._prepare_child,
        )
        print(self._process.pid, flush=True)
        os.close(sys.stdout.fileno())

    def run(self) -> int:
        """Wait until the command or the owner ends, then kill all descendants; returns the exit code."""
        while self._status is None and not self._must_end:
            self._wait(None)
        if self._status is None and self._grace_seconds > 0:
            os.kill(self._process.pid, signal.SIGTERM)
            deadline = time.monotonic() + self._grace_seconds
            while self._status is None and (left := deadline - time.monotonic()) > 0:
                self._wait(left)
        while pids := descendants():
            signal_all(pids, signal.SIGKILL)
            self._wait(0.05)
        self._reap()
        if self._scratch_dir:
            shutil.rmtree(self._scratch_dir, ignore_errors=True)
        code = os.waitstatus_to_exitcode(self._status or 0)
        return code if code >= 0 else 128 - code  # as in a shell: 137 for SIGKILL

    def _prepare_child(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def _wait(self, seconds: float | None) -> None:
        watched = [self._wakeup] if self._must_end else [self._wakeup, self._owner_pipe]
        ready, _, _ = select.select(watched, [], [], seconds)
        if self._owner_pipe in ready:
            self._must_end = True
        if self._wakeup in ready and signal.SIGTERM in os.read(self._wakeup, 4096):
            self._must_end = True
        self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._process.pid:
                self._status = self._process.returncode = status


if __name__ == "__main__":
    sys.exit(Supervisor(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:]).run())
