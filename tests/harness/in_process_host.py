"""A plugin host that runs releases' code in the test's own process, where the test can reach into it."""

import json
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

from worker.plugins import ActionRequest, Release, runner
from worker.plugins.errors import parse_reply
from worker.plugins.output import OnOutput, ignore_output

_lock = threading.Lock()


class InProcessHost:
    """One call at a time; the modules of other releases are forgotten before it."""

    current: Path | None = None

    def __init__(self, on_output: OnOutput = ignore_output) -> None:
        self._on_output = on_output

    def call(self, release: Release, request: ActionRequest, operation: str, payload: Any) -> Any:
        with _lock:
            if InProcessHost.current not in (None, release.path):
                self._forget(str(InProcessHost.current))
            InProcessHost.current = release.path
            reply = runner.call_operation(release.path, request, operation, json.dumps(payload))
        return parse_reply(reply, partial(self._on_output, request))

    def call_batch(self, release: Release, request: ActionRequest, operation: str, payload: Any) -> Any:
        return self.call(release, request, operation, payload)

    def warm_up(self, release: Release, request: ActionRequest) -> None:
        """The first call imports the release here."""

    def pin(self, package: str) -> bool:
        return True

    def restore(self, package: str, release: Release) -> bool:
        return True

    def close(self) -> None:
        """Nothing is held."""

    @staticmethod
    def _forget(folder: str) -> None:
        # All are found before one is deleted: a namespace package asks for its parent.
        found = [name for name, module in list(sys.modules.items()) if _is_of(module, folder)]
        for name in found:
            del sys.modules[name]
        sys.path[:] = [entry for entry in sys.path if entry != folder]


def _is_of(module: Any, folder: str) -> bool:
    places = [getattr(module, "__file__", None), *_paths(module)]
    return any(isinstance(place, str) and Path(place).is_relative_to(folder) for place in places)


def _paths(module: Any) -> list[Any]:
    try:
        return list(getattr(module, "__path__", []))
    except Exception:  # some modules return an object of their own for every attribute
        return []
