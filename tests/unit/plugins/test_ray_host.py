"""The Ray host without Ray."""

from collections.abc import Callable
from pathlib import Path

import pytest

from worker.plugins import (
    ActionRequest,
    PluginHostBusyError,
    PluginStore,
    ray_host,
)
from worker.plugins.ray_session import RaySession

Write = Callable[..., Path]


def test_call_without_a_slot_is_busy_and_not_a_timeout(
    store: PluginStore, write_release: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_host, "MAX_SLOT_WAIT_SECONDS", 0.01)
    write_release("cat@1.0")
    release = store.get("cat@1.0")
    host = ray_host.RayHost(RaySession(), None, lambda: pytest.fail("no package"), 300.0)
    actor = ray_host._Actor(handle=None)
    request = ActionRequest("cat@1.0", "to_task", "plugin.to_task.ToTask")
    with actor.slot, pytest.raises(PluginHostBusyError, match="busy"):
        host._call_in_slot(("a", "b"), actor, release, request, "convert_from_files", "[]")
