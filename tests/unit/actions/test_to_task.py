"""The hooks of to_task, and the batches in which a host calls them."""

import sys
import threading
from types import ModuleType
from typing import Any

import pytest
from pydantic import AliasChoices, BaseModel, Field

from worker.actions import RuntimeContext, ToTaskAction, ToTaskMethod, ToTaskParams
from worker.actions.base import ParamsError
from worker.plugins import ActionRequest

PARAMS = {"name": "n", "project": 1, "agent": 2, "target_specification_name": "label"}
FILE = {"primary_file_url": "u", "primary_file_name": "n", "data_file_url": "d", "data_file_name": "f"}


class Params(ToTaskParams):
    threshold: float = 0.5


class Convert(ToTaskAction[Params]):
    def convert_data_from_file(
        self,
        primary_file_url: str,
        primary_file_name: Any,
        data_file_url: str,
        data_file_name: Any,
        task_data: Any = None,
    ) -> dict[str, Any]:
        answers = {
            "list": [1],
            "object": {"x": object()},
            "nan": {"x": float("nan")},
            "good": {"from": data_file_url, "threshold": self.params.threshold},
        }
        return answers[data_file_url]  # type: ignore[return-value]


@pytest.fixture
def action() -> Convert:
    return Convert({**PARAMS, "threshold": 0.9}, RuntimeContext({}))


def test_task_that_fails_does_not_fail_its_batch(action: Convert) -> None:
    items = [FILE | {"data_file_url": name} for name in ("good", "list", "object", "nan", "missing")]
    answers = action.convert_from_files([*items, {"wrong": 1}])
    assert answers[0] == {"ok": {"from": "good", "threshold": 0.9}}
    assert answers[1] == {"error": "TypeError: convert_data_from_file must return a dict, not list"}
    assert answers[2] == {"error": "TypeError: x is of the type object, which JSON does not have"}
    assert answers[3] == {"error": "ValueError: x is NaN"}
    assert answers[4] == {"error": "KeyError: 'missing'"}
    assert answers[5]["error"].startswith("TypeError: ")


def test_hooks_may_name_their_arguments_otherwise() -> None:
    class Other(Convert):
        def convert_data_from_inference(self, result: Any, task_data: Any = None) -> dict[str, Any]:  # type: ignore[override]
            return {"got": [result, task_data]}

    items = [{"inference_data": 5, "task_data": {"id": 1}}]
    assert Other(PARAMS, RuntimeContext({})).convert_from_inference(items) == [
        {"ok": {"got": [5, {"id": 1}]}}
    ]


def test_error_of_a_hook_has_no_address(action: Convert) -> None:
    answer = action.convert_from_files([FILE | {"data_file_url": "https://x.test/a?token=hush"}])[0]
    assert "hush" not in answer["error"]


def test_hooks_have_the_documents_defaults() -> None:
    plain: ToTaskAction[Any] = ToTaskAction(PARAMS, RuntimeContext({}))
    assert plain.convert_from_inference([{"inference_data": {"a": 1}, "task_data": None}]) == [
        {"ok": {"a": 1}}
    ]
    assert plain.convert_from_inference([{"inference_data": [1]}])[0]["error"].startswith("TypeError")
    assert "override convert_data_from_file()" in plain.convert_from_files([FILE])[0]["error"]
    item = {"primary_file_url": "u", "primary_file_name": "n", "data_files": [], "model_id": 3}
    prepared = plain.prepare_inference([item | {"pre_processor_params": {"size": 1}}])
    assert prepared == [{"ok": {"model": 3, "method": "post", "json": {"image_path": "u", "size": 1}}}]


def test_hooks_with_concurrency_run_in_threads() -> None:
    meeting = threading.Barrier(4, timeout=5)

    class Meeting(ToTaskAction[Any]):
        concurrency = 4

        def convert_data_from_inference(self, inference_data: Any, task_data: Any = None) -> dict[str, Any]:
            meeting.wait()
            return {"n": inference_data}

    answers = Meeting(PARAMS, RuntimeContext({})).convert_from_inference(
        [{"inference_data": n} for n in range(4)]
    )
    assert answers == [{"ok": {"n": n}} for n in range(4)]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (PARAMS | {"thresh": 1}, r"unknown parameter 'thresh' \(known: .*name, .*\)"),
        (PARAMS | {"threshold": "high"}, "threshold: "),
        (PARAMS | {"method": "inference"}, "requires pre_processor, model"),
        ({}, "name: Field required"),
    ],
)
def test_wrong_params_are_named(params: dict[str, Any], message: str) -> None:
    request = ActionRequest("c@1", "to_task", "plugin.to_task.Convert", params)
    with pytest.raises(ParamsError, match=message):
        Convert.run_operation(request, "check_params", None)


class Aliased(BaseModel):
    threshold: float = Field(0.5, validation_alias=AliasChoices("limit", "min_score"))
    colour: str = Field("red", alias="color")


class TakesAliases(ToTaskAction[Aliased]):
    pass


class WithoutParams(ToTaskAction):
    pass


def test_every_alias_of_a_parameter_is_known() -> None:
    checked = TakesAliases.check_params({**PARAMS, "min_score": 0.1, "color": "blue"})

    assert (checked.threshold, checked.colour) == (0.1, "blue")  # type: ignore[attr-defined]
    with pytest.raises(ParamsError, match=r"unknown parameter 'colour' \(known"):
        TakesAliases.check_params({**PARAMS, "colour": "blue"})


def test_a_release_without_own_parameters_names_the_messages() -> None:
    request = ActionRequest("c@1", "to_task", "plugin.to_task.Convert", PARAMS)

    keys = WithoutParams.run_operation(request, "check_params", None)["keys"]

    assert {*PARAMS, "schema", "batch_size"} <= set(keys)
    assert "data_schema" not in keys
    assert "keys" not in Convert.run_operation(request, "check_params", None)


def test_params_are_an_instance_of_the_authors_model(action: Convert) -> None:
    request = ActionRequest("c@1", "to_task", "plugin.to_task.Convert", {**PARAMS, "schema": "any"})
    assert Convert.run_operation(request, "check_params", None) == {"ok": True}
    assert action.params.method is ToTaskMethod.FILE
    assert isinstance(action.params, Params)
    assert Convert(Params(**PARAMS), RuntimeContext({})).params.threshold == 0.5


def test_execute_runs_the_workflow(monkeypatch: pytest.MonkeyPatch, action: Convert) -> None:
    direct = ModuleType("worker.to_task.direct")
    direct.run = lambda given: ("ran", given)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "worker.to_task.direct", direct)
    assert action.execute() == ("ran", action)  # type: ignore[comparison-overlap]
