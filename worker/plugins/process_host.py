"""Runs plugin code in this process, for unit tests and for installations that trust their plugins."""

import json
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from worker.plugins import runner
from worker.plugins.errors import ReleaseInvalidError, parse_reply
from worker.plugins.module_names import modules_at_top
from worker.plugins.output import OnOutput, ignore_output
from worker.plugins.ray_host import RayHost
from worker.plugins.requests import ActionRequest
from worker.plugins.run_end import check_run, wait_for
from worker.plugins.store import Release


class ProcessHost:
    """Runs calls in the calling thread, without a timeout, because a thread cannot be stopped.

    A call that hangs therefore outlasts a stop of its run; no further call of that run is begun.

    Nearly all releases call their package `plugin`, so only one release's modules are in `sys.modules` at a
    time: calls of one release run concurrently, those of another release wait for them.
    The one operation that deploys runs on `ray`, because this process never loads Ray.
    """

    def __init__(self, ray: RayHost | None = None, on_output: OnOutput = ignore_output) -> None:
        self._ray = ray
        self._on_output = on_output

    def call(self, release: Release, request: ActionRequest, operation: str, payload: Any) -> Any:
        """See `PluginHost.call`."""
        check_run()
        if operation == "submit" and self._ray is not None:
            return self._ray.call(release, request, operation, payload)
        with _isolation.activated(release.path):
            reply = runner.call_operation(release.path, request, operation, json.dumps(payload))
        return parse_reply(reply, partial(self._on_output, request))

    def call_batch(self, release: Release, request: ActionRequest, operation: str, payload: Any) -> Any:
        """See `PluginHost.call_batch`; imported modules always stay loaded here."""
        return self.call(release, request, operation, payload)

    def warm_up(self, release: Release, request: ActionRequest) -> None:
        """See `PluginHost.warm_up`; the first call imports the release here."""

    def pin(self, package: str) -> bool:
        """See `PluginHost.pin`; only deployed releases have a package."""
        return self._ray is None or self._ray.pin(package)

    def restore(self, package: str, release: Release) -> bool:
        """See `PluginHost.restore`."""
        return self._ray is None or self._ray.restore(package, release)

    def close(self) -> None:
        """See `PluginHost.close`."""
        if self._ray is not None:
            self._ray.close()


class ModuleIsolation:
    """Makes the modules of one release at a time importable. There is one a process, like `sys.modules`."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._queue: deque[object] = deque()
        self._current: Path | None = None
        self._calls = 0
        self._inactive: dict[Path, dict[str, ModuleType]] = {}

    @contextmanager
    def activated(self, folder: Path) -> Iterator[None]:
        """Run a block with the release in `folder` active; in order of arrival, so that no call starves."""
        ticket = object()

        def is_next() -> bool:
            return self._queue[0] is ticket and (self._calls == 0 or self._current == folder)

        with self._condition:
            self._queue.append(ticket)
            try:
                wait_for(lambda seconds: self._condition.wait_for(is_next, seconds))
            finally:
                self._queue.remove(ticket)
                self._condition.notify_all()
            try:
                if self._current != folder:
                    self._switch(folder)
                self._calls += 1
            finally:
                self._condition.notify_all()
        try:
            yield
        finally:
            with self._condition:
                self._calls -= 1
                self._condition.notify_all()

    def _switch(self, folder: Path) -> None:
        """Take the active release's modules out of `sys.modules` and put the other release's back."""
        if self._current is not None:
            old = {
                name: module
                for name, module in list(sys.modules.items())
                if _is_module_of(module, self._current)
            }
            for name in old:
                del sys.modules[name]
            self._inactive[self._current] = old
            sys.path[:] = [entry for entry in sys.path if entry != str(self._current)]
            self._current = None
        names = modules_at_top(folder) if folder.is_dir() else ()
        taken = [name for name in names if name in sys.modules]
        if taken:
            raise ReleaseInvalidError(
                f"its top-level modules are loaded by the worker as others: {', '.join(taken)}; rename them,"
                " or let its code run in Ray (WORKER_PLUGIN_HOST)"
            )
        sys.modules.update(self._inactive.pop(folder, {}))
        self._current = folder


def _is_module_of(module: ModuleType, folder: Path) -> bool:
    """Whether the module's file, or a namespace package's folder, is in the release's folder."""
    places = [getattr(module, "__file__", None), *_paths(module)]
    return any(isinstance(place, str) and Path(place).is_relative_to(folder) for place in places)


def _paths(module: ModuleType) -> list[Any]:
    try:
        return list(getattr(module, "__path__", []))
    except Exception:  # some modules return an object of their own for every attribute
        return []


_isolation = ModuleIsolation()
