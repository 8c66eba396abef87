"""The two ways from a task to its data: from a file, or from a pre-processor's answer."""

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from shared.messages import ToTaskParams
from worker.to_task.attempt import Attempt, Work
from worker.to_task.backends import AsyncBackend
from worker.to_task.errors import TaskFailedError
from worker.to_task.files import files_of, of_specification, primary_of
from worker.to_task.hooks import Hooks, Item

Wait = Callable[[Coroutine[Any, Any, Any]], Any]
"""Runs a coroutine on the loop and waits for it, in the step's thread."""


class Route(Protocol):
    """From tasks that were fetched to data that can be written."""

    @property
    def slots(self) -> int | None:
        """Inferences at once, or None: no inference is needed."""

    def ready(self, works: list[Work], attempt: Attempt, until: float, wait: Wait) -> list[Work]:
        """Give each its `data`; new inferences are begun until the clock says `until`."""


async def fetch(backend: AsyncBackend, work: Work) -> None:
    """The task, and the files of its data unit."""
    work.task = await backend.get_task(work.open.task_id)
    unit = work.task.get("data_unit")
    if type(unit) is int:
        unit = {"id": unit}
    if not isinstance(unit, dict):
        raise TaskFailedError("the task has no data unit")
    if unit.get("files") is None:
        unit = await backend.get_data_unit(unit.get("id", ""))
    work.files = files_of(unit.get("files"))


class FileRoute:
    """By the file of the target specification."""

    slots = None

    def __init__(self, params: ToTaskParams, hooks: Hooks) -> None:
        self._specification = params.target_specification_name or ""
        self._hooks = hooks

    def ready(
        self,
        works: list[Work],
        attempt: Attempt,
        until: float,  # noqa: ARG002 - only inferences take long
        wait: Wait,  # noqa: ARG002
    ) -> list[Work]:
        """See `Route`."""
        return attempt.ask_plugin(works, self._hooks.convert_from_files, self._item, take_data)

    def _item(self, work: Work) -> Item:
        primary = primary_of(work.files)
        target = of_specification(work.files, self._specification)
        return {
            "primary_file_url": primary.url,
            "primary_file_name": primary.name,
            "data_file_url": target.url,
            "data_file_name": target.name,
            "task_data": work.task,
        }


def take_data(work: Work, data: dict[str, Any]) -> None:
    """What the plugin made of the task."""
    work.data = data
