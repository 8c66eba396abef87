"""Runs one command and sees to it that nothing of it outlives the owner.

Started by `worker.sandbox.processes` as a plain script with the standard library alone. The owner holds the
other end of a pipe, the lifeline; the kernel closes it when the owner ends, however it ends. Then, or when
the command itself has ended, everything below this process is ended: it is a subreaper, so a daemon that
detaches itself is handed to it by the kernel and not to init. The id of the command's process goes to stdout.
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
    """Linux's prctl; elsewhere nothing happens, and daemons that detach themselves are not followed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def descendants() -> list[int]:
    """Ids of all processes below this one, those too that are dead but not yet buried."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name in brackets may hold anything; what follows is state and parent.
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
    """Signal each; one that has just ended is no error."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


class Guardian:
    """One command, its descendants and the lifeline."""

    def __init__(self, lifeline: int, grace: float, scratch: str, command: list[str]) -> None:
        self._lifeline, self._grace, self._scratch = lifeline, grace, scratch
        self._status: int | None = None
        self._asked_to_end = False
        self._wakeup, signals = os.pipe()
        os.set_blocking(signals, False)
        signal.set_wakeup_fd(signals, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._main = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            stderr=sys.stderr,
            start_new_session=True,
            preexec_fn=self._before_command,
        )
        print(self._main.pid, flush=True)
        os.close(sys.stdout.fileno())

    def run(self) -> int:
        """Wait for the end of the command or of the owner; leave nothing behind."""
        while self._status is None and not self._asked_to_end:
            self._wait(None)
        if self._status is None and self._grace > 0:
            os.kill(self._main.pid, signal.SIGTERM)
            deadline = time.monotonic() + self._grace
            while self._status is None and (left := deadline - time.monotonic()) > 0:
                self._wait(left)
        while pids := descendants():
            signal_all(pids, signal.SIGKILL)
            self._wait(0.05)
        self._reap()
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)
        code = os.waitstatus_to_exitcode(self._status or 0)
        return code if code >= 0 else 128 - code  # as a shell says it: 137 for SIGKILL

    def _before_command(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    def _wait(self, seconds: float | None) -> None:
        watched = [self._wakeup] if self._asked_to_end else [self._wakeup, self._lifeline]
        ready, _, _ = select.select(watched, [], [], seconds)
        if self._lifeline in ready:
            self._asked_to_end = True
        if self._wakeup in ready and signal.SIGTERM in os.read(self._wakeup, 4096):
            self._asked_to_end = True
        self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._main.pid:
                self._status = self._main.returncode = status


if __name__ == "__main__":
    sys.exit(Guardian(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:]).run())
