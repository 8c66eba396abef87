"""A child process of the worker that runs the code of one release, as the process host sees it."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from worker.plugins.child_process.environment import plugin_environment
from worker.plugins.errors import (
    PluginHostUnavailableError,
    PluginLoadError,
    PluginProcessDiedError,
    PluginTimeoutError,
)
from worker.plugins.run_end import wait_for
from worker.plugins.runner import LOAD

if TYPE_CHECKING:
    from worker.plugins.store import Release

CHILD_MODULE: Final = "worker.plugins.child_process.child"
MAX_START_SECONDS: Final = 60.0
"""Longest wait for the process itself; no code of the author runs meanwhile."""
MAX_END_SECONDS: Final = 1.0
"""Longest wait for the end of a process that has closed its pipe."""
MAX_LOAD_SECONDS: Final = 300.0
"""Longest wait for the import of the author's modules."""


class PluginProcess:
    """One process of a release, for one call at a time.

    Attributes:
        answered: How many calls it has answered.
        last_used: When its last call ended, by the monotonic clock.
    """

    def __init__(self, release: "Release", env: Mapping[str, str]) -> None:
        """Start the process; the first call waits until it has started. `env` is that of the request."""
        self._release = release
        self._connection, theirs = multiprocessing.Pipe()
        arguments = theirs.fileno(), os.getpid(), release.path
        declared = release.config.runtime_env.get("env_vars") or {}
        with theirs:
            self._process = subprocess.Popen(
                # -P: a file in the current directory must not shadow a library.
                [sys.executable, "-P", "-m", CHILD_MODULE, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=plugin_environment(os.environ, declared, env),
                # Ctrl-C in a terminal is meant for the worker. And what the code starts ends with it.
                start_new_session=True,
            )
        self._has_loaded = False
        self.answered = 0
        self.last_used = time.monotonic()

    @property
    def is_running(self) -> bool:
        """Whether it can be called. It is not reaped here: its number is its group's, which `kill` ends."""
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def call(self, request: str, operation: str, payload: str, seconds: float) -> str:
        """The reply of `runner.call_operation`, within `seconds` once the author's modules are imported.

        Raises `PluginTimeoutError`, `PluginProcessDiedError`, `PluginHostUnavailableError` when it does not
        start or load, and `RunEndedError`; none of them leaves a process that can be called.
        """
        try:
            if not self._has_loaded:
                self._load(request)
            reply = self._exchange(request, operation, payload, seconds)
        except BaseException:
            self.kill()
            raise
        self.answered += 1
        self.last_used = time.monotonic()
        return reply

    def _load(self, request: str) -> None:
        """Start and import, apart from the first call: no item is to blame for that, nor for its time."""
        try:
            if not wait_for(self._has_message, MAX_START_SECONDS):
                raise PluginHostUnavailableError(
                    f"the process of {self._release.name} has not started within {MAX_START_SECONDS:g} s"
                )
            self._receive()
        except PluginProcessDiedError as error:
            raise PluginHostUnavailableError(f"{error.message} at its start") from None
        try:
            # An error of the modules is met again by the call.
            self._exchange(request, LOAD, "null", MAX_LOAD_SECONDS)
        except (PluginProcessDiedError, PluginTimeoutError) as error:
            raise PluginLoadError(f"{self._release.name} cannot be imported: {error}") from None
        self._has_loaded = True

    def _exchange(self, request: str, operation: str, payload: str, seconds: float) -> str:
        with suppress(OSError):  # it has died, which is met below
            self._connection.send_bytes(json.dumps([request, operation, payload]).encode())
        if not wait_for(self._has_message, seconds):
            raise PluginTimeoutError(
                f"{self._release.name}: {operation} took longer than {seconds:g} s and was stopped"
            )
        return self._receive()

    def _has_message(self, seconds: float) -> bool:
        """Whether something can be received, or the process has ended; its pipe may be open elsewhere."""
        return self._connection.poll(seconds) or not self.is_running

    def _receive(self) -> str:
        try:
            if self._connection.poll():
                return self._connection.recv_bytes().decode()
        except (EOFError, OSError):
            pass
        deadline = time.monotonic() + MAX_END_SECONDS
        while self.is_running and time.monotonic() < deadline:
            time.sleep(0.01)
        has_ended = not self.is_running
        self.kill()
        why = _end_of(self._process.returncode if has_ended else None)
        raise PluginProcessDiedError("ProcessDied", f"the process of {self._release.name} died ({why})")

    def kill(self) -> None:
        """End the process, and what it has started, also when it has ended before that; safe to repeat."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._connection.close()


def _end_of(code: int | None) -> str:
    if code is None:
        return "it has closed its pipe"
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"by signal {signal.Signals(-code).name}"
    return f"by signal {-code}"
