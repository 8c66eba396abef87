"""One operation of a release: errors as data, and how large an answer may be."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.in_process_host import InProcessHost
from worker.plugins import (
    ClientAccess,
    PluginCallError,
    PluginStore,
    request_for,
    runner,
)
from worker.plugins.errors import parse_reply

Write = Callable[..., Path]


PARAMS = {"name": "n", "project": 1, "agent": 1, "target_specification_name": "x"}


TO_TASK = """
    from worker.actions import ToTaskAction
    from plugin.words import WORD

    class ToTask(ToTaskAction):
        def convert_data_from_inference(self, inference_data, task_data=None):
            from plugin import words  # at the call, too
            return {"word": WORD, "late": words.WORD, "env": self.ctx.env["SYNAPSE_PLUGIN_RELEASE_CODE"]}
"""


@pytest.fixture
def convert(store: PluginStore, access: ClientAccess) -> Callable[..., Any]:
    host = InProcessHost()

    def call(name: str, *items: Any, operation: str = "convert_from_inference", **params: Any) -> Any:
        release = store.get(name)
        request = request_for(release, "to_task", PARAMS | params, access)
        return host.call_batch(release, request, operation, [{"inference_data": item} for item in items])

    return call


@pytest.mark.parametrize(
    ("module", "error_type", "message"),
    [
        ("x = 1", "EntrypointError", "module plugin.to_task has no ToTask"),
        (
            "import numpie",
            "ModuleNotFoundError",
            r"No module named 'numpie' \(plugin/to_task.py:1 in <module>\)",
        ),
        ("1 / 0", "ZeroDivisionError", r"division by zero \(plugin/to_task.py:1 in <module>\)"),
        ("def (", "SyntaxError", "to_task.py, line 1"),
        ("raise SystemExit(3)", "SystemExit", "3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", "to_task.py:1"),
        ("raise BaseException('odd')", "BaseException", "odd"),
        ("class ToTask: pass", "OperationError", "cannot convert_from_inference"),
    ],
)
def test_error_of_an_entrypoint_is_described(
    write_release: Write, convert: Callable[..., Any], module: str, error_type: str, message: str
) -> None:
    write_release("cat@1.0", to_task=module)
    with pytest.raises(PluginCallError, match=message) as caught:
        convert("cat@1.0", {})
    assert caught.value.error_type == error_type
    assert str(store_path := Path(sys.path[0])) not in str(caught.value) or store_path == Path()


def test_missing_module_is_named(write_release: Write, convert: Callable[..., Any]) -> None:
    write_release("cat@1.0")
    with pytest.raises(
        PluginCallError, match=r"entrypoint plugin\.to_task\.ToTask: there is no module plugin\.to_task"
    ):
        convert("cat@1.0", {})


def test_only_declared_operations_can_be_called(write_release: Write, convert: Callable[..., Any]) -> None:
    write_release("cat@1.0", to_task=TO_TASK, words="WORD = 1")
    for operation in ("execute", "__init__", "convert_data_from_inference", "_each"):
        with pytest.raises(PluginCallError, match="OperationError"):
            convert("cat@1.0", {}, operation=operation)


def test_unknown_parameter_is_rejected(write_release: Write, convert: Callable[..., Any]) -> None:
    write_release("cat@1.0", to_task=TO_TASK, words="WORD = 1")
    with pytest.raises(PluginCallError, match="unknown parameter 'threshhold'"):
        convert("cat@1.0", {}, threshhold=1)


LARGE = """
    from worker.actions import ToTaskAction

    class ToTask(ToTaskAction):
        def convert_data_from_inference(self, inference_data, task_data=None):
            return {"text": "x" * inference_data}
"""


def test_an_answer_that_is_too_large_is_an_error_of_its_item(
    write_release: Write, convert: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_release("cat@1.0", to_task=LARGE)
    monkeypatch.setattr(runner, "MAX_REPLY_BYTES", runner.MB)

    [small, large] = convert("cat@1.0", 10, 3 * runner.MB)

    assert small == {"ok": {"text": "x" * 10}}
    assert large == {
        "error": "AnswerTooLargeError: the plugin's answer has at least 3.0 MB as JSON, and 1 MB are allowed:"
        " return less, for example a reference to a file instead of what is in it"
    }


def test_answers_that_are_too_large_together_fail_their_call(
    write_release: Write, convert: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_release("cat@1.0", to_task=LARGE)
    monkeypatch.setattr(runner, "MAX_REPLY_BYTES", runner.MB)

    with pytest.raises(PluginCallError, match=r"AnswerTooLargeError: .* at least 1\.1 MB .* and 1 MB"):
        convert("cat@1.0", *[400_000] * 4)


def test_no_more_is_encoded_than_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a limit of ten bytes
    monkeypatch.setattr(runner, "MAX_REPLY_BYTES", 10)
    encoded: list[Any] = []
    monkeypatch.setattr(runner.json, "dumps", lambda value, **_: encoded.append(value) or "12345")

    # When the third of many items passes it
    with pytest.raises(runner.AnswerTooLargeError):
        runner._reply(list(range(100)))

    # Then no other was encoded
    assert encoded == [0, 1, 2]


@pytest.mark.parametrize("value", [[], [1, {"a": None}], {"a": [1.5, "é"]}, "text", None, True])
def test_a_reply_is_json_whatever_the_value(value: Any) -> None:
    assert json.loads(runner._reply(value)) == {"ok": value}


def test_a_value_that_is_nested_too_deeply_is_named() -> None:
    # Given what an encoder of JSON does not walk through
    value: dict[str, Any] = {}
    for _ in range(10_000):
        value = {"a": value}

    with pytest.raises(ValueError, match="nested too deeply"):
        runner._reply([value])


def test_a_reply_that_is_nested_too_deeply_is_the_authors_error() -> None:
    with pytest.raises(PluginCallError, match="nested too deeply"):
        parse_reply('{"ok": ' + "[" * 100_000, lambda _: None)


WORDY = """
    from worker.actions import ToTaskAction

    def raising(self, inference_data, task_data=None):
        raise type("E" * 1_000_000, (Exception,), {})("too long " * 1_000_000)

    class ToTask(ToTaskAction):
        convert_data_from_inference = raising

        def convert_from_files(self, items):
            scope = {}
            exec(compile(f"def {'f' * 100_000}(): raise ValueError", __file__, "exec"), scope)
            scope["f" * 100_000]()
"""


def test_an_error_of_an_item_is_cut(write_release: Write, convert: Callable[..., Any]) -> None:
    write_release("cat@1.0", to_task=WORDY)

    [answer] = convert("cat@1.0", 1)

    assert answer["error"].startswith("EEEE")
    assert "too long too long" in answer["error"]
    assert len(answer["error"]) < 5_000


def test_the_frames_of_an_error_are_cut(write_release: Write, convert: Callable[..., Any]) -> None:
    write_release("cat@1.0", to_task=WORDY)

    with pytest.raises(PluginCallError) as caught:
        convert("cat@1.0", operation="convert_from_files")

    assert "plugin/to_task.py" in caught.value.trace
    assert len(caught.value.trace) + len(str(caught.value)) < 10_000
