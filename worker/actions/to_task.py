"""Pre-annotate tasks: the hooks that authors override, and the batches in which a host calls them.

Rules: seeds, "Pre-Annotation Actions"; contract, "Plugins".
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

from pydantic import BaseModel
from typing_extensions import TypeVar

from shared.messages import JsonObject, ToTaskMethod, ToTaskParams
from shared.statuses import ToTaskResult
from worker.actions.base import BaseAction
from worker.actions.overrides import ActionKind
from worker.platform import clean

__all__ = ["ToTaskAction", "ToTaskMethod", "ToTaskParams", "ToTaskResult"]

P = TypeVar("P", bound=BaseModel, default=ToTaskParams)
Item = Mapping[str, Any]


class ToTaskAction(BaseAction[P]):
    """Turns files or inference results into task data. Override the hook of the method that you support.

    Attributes:
        concurrency: How many tasks are converted at once, in threads. Raise it when your hooks wait for files
            and are safe for threads.
    """

    base_params = ToTaskParams
    params_model = ToTaskParams
    concurrency: ClassVar[int] = 1
    operations: ClassVar[Mapping[str, str]] = {
        "convert_from_files": "convert_from_files",
        "prepare_inference": "prepare_inference",
        "convert_from_inference": "convert_from_inference",
        "check_params": "_check_params_operation",
    }

    @property
    def client(self) -> Any:
        """The backend client of the context.

        Raises:
            RuntimeError: The context has none.
        """
        if self.ctx.client is None:
            raise RuntimeError("the context has no backend client: give RuntimeContext(client=...)")
        return self.ctx.client

    def convert_data_from_file(
        self,
        primary_file_url: str,
        primary_file_name: str | None,
        data_file_url: str,
        data_file_name: str | None,
        task_data: JsonObject | None = None,
    ) -> JsonObject:
        """Convert the file of the target specification to task data. Override this for method `file`.

        Args:
            primary_file_url: URL of the task's primary file.
            primary_file_name: Its original name, if it is known.
            data_file_url: URL of the file of the target specification.
            data_file_name: Its original name, if it is known.
            task_data: The whole task of the backend.

        Returns:
            The data to write to the task.

        Raises:
            NotImplementedError: The plugin does not support method `file`.
        """
        raise NotImplementedError("override convert_data_from_file() to support method 'file'")

    def convert_data_from_inference(
        self,
        inference_data: Any,
        task_data: JsonObject | None = None,  # noqa: ARG002 - for overrides
    ) -> JsonObject:
        """Convert the pre-processor's answer to task data. Override this for method `inference`.

        Args:
            inference_data: The pre-processor's answer, any JSON value.
            task_data: The whole task of the backend.

        Returns:
            The data to write to the task; by default the answer itself.
        """
        answer: JsonObject = inference_data
        return answer

    def setup_inference_params(
        self,
        primary_file_url: str,
        primary_file_name: str | None,  # noqa: ARG002 - this and others: for overrides
        data_files: list[JsonObject],  # noqa: ARG002
        *,
        model_id: int | None = None,
        pre_processor_params: JsonObject | None = None,
        pre_processor_config: JsonObject | None = None,  # noqa: ARG002
        task_data: JsonObject | None = None,  # noqa: ARG002
    ) -> JsonObject:
        """Make the `params` of the inference call. Override this to send the pre-processor something else.

        Args:
            primary_file_url: URL of the task's primary file.
            primary_file_name: Its original name, if it is known.
            data_files: The task's other files: `url`, `file_name`, `specification_name`.
            model_id: The run's parameter `model`.
            pre_processor_params: The run's parameter of that name.
            pre_processor_config: The configuration of the pre-processor's release.
            task_data: The whole task of the backend.

        Returns:
            `model`, `method` and `json`, the body that is sent to the pre-processor.
        """
        body = {"image_path": primary_file_url, **(pre_processor_params or {})}
        return {"model": model_id, "method": "post", "json": body}

    def execute(self) -> ToTaskResult:
        """Run the whole action in this process, blocking, with the same functions as the worker's steps.

        Returns:
            What the job's result would hold.

        Raises:
            RuntimeError: The run failed (contract: "Errors that users read").
        """
        # Imported here, because only a direct run needs the workflow.
        from worker.to_task.direct import run

        result: ToTaskResult = run(self)
        return result

    def convert_from_files(self, items: Sequence[Item]) -> list[JsonObject]:
        """Call `convert_data_from_file` for each item.

        Args:
            items: The hook's arguments by name.

        Returns:
            For each item, in order, `{"ok": data}` or `{"error": text}`.
        """
        names = "primary_file_url", "primary_file_name", "data_file_url", "data_file_name"
        return self._each(self.convert_data_from_file, names, items)

    def prepare_inference(self, items: Sequence[Item]) -> list[JsonObject]:
        """Call `setup_inference_params` for each item.

        Args:
            items: The hook's arguments by name.

        Returns:
            For each item, in order, `{"ok": params}` or `{"error": text}`.
        """
        names = "primary_file_url", "primary_file_name", "data_files"
        return self._each(self.setup_inference_params, names, items)

    def convert_from_inference(self, items: Sequence[Item]) -> list[JsonObject]:
        """Call `convert_data_from_inference` for each item.

        Args:
            items: The hook's arguments by name.

        Returns:
            For each item, in order, `{"ok": data}` or `{"error": text}`.
        """
        return self._each(self.convert_data_from_inference, ("inference_data",), items)

    def _each(
        self, hook: Callable[..., Any], positional: Sequence[str], items: Sequence[Item]
    ) -> list[JsonObject]:
        if self.concurrency <= 1 or len(items) <= 1:
            return [_outcome(hook, positional, item) for item in items]
        with ThreadPoolExecutor(min(self.concurrency, len(items))) as pool:
            return list(pool.map(lambda item: _outcome(hook, positional, item), items))

    def _check_params_operation(self, payload: Any) -> JsonObject:
        return self._answer_params(ActionKind.TO_TASK, payload)


def _outcome(hook: Callable[..., Any], positional: Sequence[str], item: Item) -> JsonObject:
    """`{"ok": value}` or `{"error": text}`, so that a task that fails does not fail its batch.

    The arguments named in `positional` are passed by position, because authors give them names of their own.
    """
    # Imported here, because only a host or a direct run calls the hooks in batches.
    from worker.plugins.runner import check_size, dump_json, error_name, error_text

    try:
        arguments = [item[name] for name in positional if name in item]
        value = hook(*arguments, **{name: item[name] for name in item if name not in positional})
        if not isinstance(value, dict):
            raise TypeError(f"{hook.__name__} must return a dict, not {type(value).__name__}")
        check_size(len(dump_json(value)))
    except Exception as error:  # the author's code
        name, text = error_name(error), clean(error_text(error))
        return {"error": f"{name}: {text}" if text else name}
    return {"ok": value}
