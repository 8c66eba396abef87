"""A plugin host in memory: what the author's code would answer."""

from collections.abc import Callable
from typing import Any

from worker.plugins import PluginProcessDiedError
from worker.plugins.requests import WHOLE_RUN
from worker.testing.faults import Faults
from worker.testing.serve import FakeServe

Row = dict[str, Any]

PLAN: Row = {
    "app_name": "digits@1.0.0",
    "route_prefix": "/abc",
    "ray_actor_options": {"num_cpus": 2},
    "serve_options": {"num_replicas": 3},
    "digest": "d1",
}


class FakePluginHost:
    """The code of one release, without an author.

    `submit` puts the application on `serve` as DEPLOYING. Of `to_task`, conversions from files name the file,
    conversions from inferences repeat the answer, and a request holds the primary file's URL.

    Attributes:
        faults: Errors to raise on demand; of `call` and `call_batch` by operation.
        serve: The Ray Serve that `submit` deploys on.
        plan: The answer of the operation `plan`.
        messages: Messages of the answer to `submit`.
        calls: Operations of `call`, in their order.
        batches: Operation and length of every batch.
        checked: The answer of `check_params`.
        items: All items of all batches.
        whole_run: How the action runs whole; None for one that goes by the worker's steps.
        warm_ups: How often the release was to be loaded for batches.
        failing: Ids of tasks to which the author's code answers with an error.
        crashing: Ids of tasks with which the author's code ends its process.
        crash: What the host raises for a batch with such a task.
    """

    def __init__(self, serve: FakeServe | None = None) -> None:
        self.faults = Faults()
        self.serve = serve or FakeServe()
        self.plan: Row = dict(PLAN)
        self.checked: Row = {"ok": True}
        self.messages: list[str] = []
        self.calls: list[str] = []
        self.batches: list[tuple[str, int]] = []
        self.items: list[Row] = []
        self.whole_run: Row | None = None
        self.warm_ups = 0
        self.failing: set[int] = set()
        self.crashing: set[int] = set()
        self.crash: Exception = PluginProcessDiedError("ActorDiedError", "the plugin's process died")

    def call(self, release: object, request: object, operation: str, payload: Any) -> Any:
        """A one-off call: `plan`, `submit` or `check_params`.

        Args:
            release: The release; not looked at.
            request: The request; not looked at.
            operation: Name of the operation.
            payload: Its argument; `submit` must get the plan back.

        Returns:
            The answer of the operation.
        """
        self.calls.append(operation)
        with self.faults.of(operation):
            whole_run = {} if self.whole_run is None else {WHOLE_RUN: self.whole_run}
            if operation == "plan":
                return {**self.plan, **whole_run}
            if operation == "submit":
                # Of a forced deployment the digest is another one.
                plan = dict(payload or {})
                assert plan == {**self.plan, "digest": plan["digest"]}, "submit gets the plan that was made"
                self.serve.submit(str(plan["digest"]), self.plan["route_prefix"])
                return {"submitted": True, "reason": None, "replaced": False, "messages": self.messages}
            return {"ok": True, **whole_run} if whole_run else dict(self.checked)

    def call_batch(self, release: object, request: object, operation: str, payload: list[Row]) -> list[Row]:
        """A batch of a hook of `to_task`; one answer per item.

        Args:
            release: The release; not looked at.
            request: The request; not looked at.
            operation: Name of the hook.
            payload: The items.

        Returns:
            For each item `{"ok": value}` or `{"error": text}`.
        """
        self.batches.append((operation, len(payload)))
        self.items += payload
        with self.faults.of(operation):
            if any(item["task_data"]["id"] in self.crashing for item in payload):
                raise self.crash
            return [self._answer(_CONVERSIONS[operation], item) for item in payload]

    def warm_up(self, release: object, request: object) -> None:
        """Load the release for batches; counted.

        Args:
            release: The release; not looked at.
            request: The request; not looked at.
        """
        self.warm_ups += 1

    def _answer(self, convert: Callable[[Row], Row], item: Row) -> Row:
        if item["task_data"]["id"] in self.failing:
            return {"error": "ValueError: no digit in it"}
        return {"ok": convert(item)}


def _inference_params(item: Row) -> Row:
    return {"model": item["model_id"], "method": "post", "json": {"image_path": item["primary_file_url"]}}


_CONVERSIONS: dict[str, Callable[[Row], Row]] = {
    "convert_from_files": lambda item: {"from": item["data_file_name"]},
    "prepare_inference": _inference_params,
    "convert_from_inference": lambda item: {"said": item["inference_data"]},
}
