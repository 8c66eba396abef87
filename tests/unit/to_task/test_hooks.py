"""The hooks of a plugin, called with batches."""

from collections.abc import Callable

from tests.unit.to_task.world import World
from worker.to_task.hooks import PluginHooks


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
