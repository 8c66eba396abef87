"""The hooks of a plugin, called with batches."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.to_task.world import World
from worker.plugins import PluginCallError, PluginTimeoutError
from worker.to_task.hooks import PluginHooks, call_hook


@pytest.mark.parametrize(
    "error", [PluginCallError("ActorDiedError", "it died"), PluginTimeoutError("too long")]
)
def test_items_of_a_batch_with_a_bad_one_are_called_one_by_one(error: Exception) -> None:
    sizes: list[int] = []

    def hook(items: Any) -> list[Any]:
        sizes.append(len(items))
        if {"n": 5} in items:
            raise error
        return [{"ok": {"n": item["n"]}} for item in items]

    answers = call_hook(hook, [{"n": n} for n in range(8)])

    assert [n for n, answer in enumerate(answers) if "ok" in answer] == [0, 1, 2, 3, 4, 6, 7]
    assert answers[5] == {"error": str(error)}
    assert sizes == [8, *[1] * 8]


def test_the_host_is_called_by_operation(make_world: Callable[..., World]) -> None:
    world = make_world(1)
    hooks = PluginHooks(world.host, None, None)  # type: ignore[arg-type]
    item = {"task_data": {"id": 1}, "data_file_name": "f", "primary_file_url": "u", "model_id": 9}

    hooks.convert_from_files([item])
    hooks.prepare_inference([item])
    hooks.convert_from_inference([{**item, "inference_data": 7}])

    assert [operation for operation, _ in world.host.batches] == [
        "convert_from_files", "prepare_inference", "convert_from_inference",
    ]  # fmt: skip
