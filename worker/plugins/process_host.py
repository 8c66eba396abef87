"""Runs plugin code in child processes of this one, which need no Ray."""

import json
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from worker.plugins.child_process import PluginProcess
from worker.plugins.errors import (
    PluginCallError,
    PluginError,
    PluginHostBusyError,
    PluginLoadError,
    PluginProcessDiedError,
    RunEndedError,
    died_by_itself,
    parse_reply,
)
from worker.plugins.output import OnOutput, ignore_output
from worker.plugins.ray_host import RayHost
from worker.plugins.requests import ActionRequest
from worker.plugins.run_end import check_run, wait_for
from worker.plugins.runner import LOAD
from worker.plugins.store import Release

MAX_PROCESSES = 4
"""Of one release, each with one call at a time; as many as a run has chunks in flight."""
MAX_RELEASES = 16
"""Whose idle processes are kept."""
MAX_IDLE_SECONDS = 600.0
"""A process that was not called for this long is ended."""
SHARE_SECONDS = 0.1
"""So long a call waits for a free process before another is started, which imports everything again."""
MAX_SLOT_WAIT_SECONDS = 5.0
"""Longest wait for a process when there are as many as may be."""

_Key = tuple[str, str]


@dataclass
class _Processes:
    """Those of one release: `count` of them, of which `idle` are not called now."""

    idle: list[PluginProcess] = field(default_factory=list)
    count: int = 0
    last_used: float = field(default_factory=time.monotonic)


class ProcessHost:
    """Runs each call in a child process with the release's modules alone; `timeout` is in seconds a call.

    A process that hangs is killed, and one that dies takes nothing with it. When the run ends for which a
    call is made, its process is killed, too. The one operation that deploys runs on `ray`.
    """

    def __init__(
        self, ray: RayHost | None = None, timeout: float = 300.0, on_output: OnOutput = ignore_output
    ) -> None:
        self._ray = ray
        self._timeout = timeout
        self._on_output = on_output
        self._condition = threading.Condition()
        self._releases: dict[_Key, _Processes] = {}
        self._owner = os.getpid()

    def call(self, release: Release, request: ActionRequest, operation: str, payload: Any) -> Any:
        """See `PluginHost.call`."""
        if operation == "submit" and self._ray is not None:
            return self._ray.call(release, request, operation, payload)
        try:
            return self.call_batch(release, request, operation, payload)
        except PluginLoadError as error:  # a one-off call is the one that loads, and answers for it
            raise PluginCallError("PluginLoadError", str(error)) from None

    def call_batch(self, release: Release, request: ActionRequest, operation: str, payload: Any) -> Any:
        """See `PluginHost.call_batch`; a process stays loaded between calls of both kinds."""
        check_run()
        text, is_retry = json.dumps(payload), False
        while True:
            processes, process = self._acquire(release, request)
            answered = process.answered
            try:
                reply = process.call(request.to_json(), operation, text, self._timeout)
            except PluginProcessDiedError:
                if is_retry or died_by_itself(answered, payload):
                    raise
                is_retry = True
                continue
            finally:
                self._give_back(release, processes, process)
            return parse_reply(reply, partial(self._on_output, request))

    def warm_up(self, release: Release, request: ActionRequest) -> None:
        """See `PluginHost.warm_up`."""
        with self._condition:
            self._forget_parent()
            if _key(release) in self._releases:
                return
        arguments = release, request
        threading.Thread(target=self._warm_up, args=arguments, name="plugin-warm-up", daemon=True).start()

    def _warm_up(self, release: Release, request: ActionRequest) -> None:
        with suppress(PluginError, RunEndedError, OSError):
            self.call_batch(release, request, LOAD, None)

    def pin(self, package: str) -> bool:
        """See `PluginHost.pin`; only deployed releases have a package."""
        return self._ray is None or self._ray.pin(package)

    def restore(self, package: str, release: Release) -> bool:
        """See `PluginHost.restore`."""
        return self._ray is None or self._ray.restore(package, release)

    def close(self) -> None:
        """See `PluginHost.close`."""
        with self._condition:
            self._forget_parent()
            idle = []
            for found in self._releases.values():
                found.idle, those = [], found.idle
                found.count -= len(those)
                idle += those
            self._releases.clear()
        for process in idle:
            process.kill()
        if self._ray is not None:
            self._ray.close()

    def _acquire(self, release: Release, request: ActionRequest) -> tuple[_Processes, PluginProcess]:
        """A process of the release that nobody calls; raises `PluginHostBusyError`, `RunEndedError`."""
        dropped: list[PluginProcess] = []
        try:
            with self._condition:
                self._forget_parent()
                dropped += self._drop_idle(_key(release))
                processes = self._releases.setdefault(_key(release), _Processes())
                waits = (1, SHARE_SECONDS), (MAX_PROCESSES, MAX_SLOT_WAIT_SECONDS)
                if not any(self._may_begin(processes, dropped, most, seconds) for most, seconds in waits):
                    raise PluginHostBusyError(f"{release.name}: its processes are busy")
                if processes.idle:
                    return processes, processes.idle.pop()
                processes.count += 1
        finally:
            for process in dropped:
                process.kill()
        try:
            return processes, PluginProcess(release, request.env)
        except BaseException:
            with self._condition:
                processes.count -= 1
            raise

    def _may_begin(
        self, processes: _Processes, dropped: list[PluginProcess], most: int, seconds: float
    ) -> bool:
        """Whether within `seconds` a process is idle, or there are fewer than `most`."""

        def is_free() -> bool:
            while processes.idle and not processes.idle[-1].is_running:
                # It died between two calls, which is the failure of neither.
                dropped.append(processes.idle.pop())
                processes.count -= 1
            return bool(processes.idle) or processes.count < most

        return wait_for(lambda left: self._condition.wait_for(is_free, left), seconds)

    def _give_back(self, release: Release, processes: _Processes, process: PluginProcess) -> None:
        with self._condition:
            is_kept = process.is_running and self._releases.get(_key(release)) is processes
            if is_kept:
                processes.idle.append(process)
            else:
                processes.count -= 1
            processes.last_used = time.monotonic()
            self._condition.notify()
        if not is_kept:
            process.kill()

    def _drop_idle(self, key: _Key) -> list[PluginProcess]:
        """Forget processes that were idle for long, and those of the release that was called longest ago."""
        now, dropped = time.monotonic(), []
        for processes in self._releases.values():
            idle = [each for each in processes.idle if now - each.last_used > MAX_IDLE_SECONDS]
            processes.idle = [each for each in processes.idle if each not in idle]
            processes.count -= len(idle)
            dropped += idle
        unused = {
            each: found
            for each, found in self._releases.items()
            if found.count == len(found.idle) and each != key
        }
        oldest = sorted(unused, key=lambda each: unused[each].last_used)
        for each in oldest[: max(0, len(self._releases) - MAX_RELEASES)]:
            # A thread may wait for one of these.
            processes = self._releases.pop(each)
            processes.idle, idle = [], processes.idle
            processes.count -= len(idle)
            dropped += idle
        return dropped

    def _forget_parent(self) -> None:
        """A forked process has its parent's object, but the processes belong to the parent."""
        if self._owner != os.getpid():
            self._releases, self._owner = {}, os.getpid()


def _key(release: Release) -> _Key:
    return str(release.path), release.checksum
