"""What plugin code says during a call: collected within limits, and sent with the reply or the error."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness.in_process_host import InProcessHost
from worker.plugins import ClientAccess, PluginCallError, PluginStore, request_for
from worker.plugins import output as output_module
from worker.plugins.output import OutputCollector, PluginOutput, read_output

Write = Callable[..., Path]

PARAMS = {"name": "n", "project": 1, "agent": 1, "target_specification_name": "x"}

SPEAKS = """
    from worker.actions import ToTaskAction

    class ToTask(ToTaskAction):
        concurrency = 2
        def convert_data_from_inference(self, inference_data, task_data=None):
            self.log_message({"en": "Hello {name}", "ko": "안녕 {name}"}, "warning", name=inference_data)
            self.logger.error("from %s", "the logger")
            self.log("checkpoint", {"epoch": 3}, "/x.pt")
            self.log_metric("train", "epoch", 3, loss=0.5)
            self.log_visualization("val", "g", 0, "/x.png")
            self.set_progress(1, 4, "read")
            self.set_metrics({"files": 2}, "read")
            return {}
"""
FAILS = """
    from worker.actions import ToTaskAction

    class ToTask(ToTaskAction):
        def convert_data_from_inference(self, inference_data, task_data=None):
            self.log_message("about to fail")
            raise SystemExit(3)
"""


@pytest.fixture
def call(store: PluginStore, access: ClientAccess) -> Callable[..., list[PluginOutput]]:
    def call(*items: Any) -> list[PluginOutput]:
        got: list[PluginOutput] = []
        host = InProcessHost(on_output=lambda request, output: got.append(output))
        release = store.get("cat@1.0")
        request = request_for(release, "to_task", PARAMS, access, job="42", language="ko")
        try:
            host.call_batch(
                release, request, "convert_from_inference", [{"inference_data": i} for i in items]
            )
        except PluginCallError as error:
            assert error.error_type == "SystemExit"  # noqa: PT017
        return got

    return call


def test_an_action_of_ours_says_all_kinds(write_release: Write, call: Callable[..., Any]) -> None:
    write_release(to_task=SPEAKS)

    [output] = call("you")

    assert [(entry.level, entry.text) for entry in output.entries] == [
        ("warning", "안녕 you"),
        ("error", "from the logger"),
        ("info", 'checkpoint {"epoch": 3, "file": "/x.pt"}'),
        ("info", 'metric {"category": "train", "key": "epoch", "value": 3, "metrics": {"loss": 0.5}}'),
        ("info", 'visualization {"category": "val", "group": "g", "index": 0, "file": "/x.png"}'),
    ]
    assert (output.progress, output.metrics) == ({"read": 25.0}, {"read": {"files": 2.0}})


def test_threads_of_a_batch_share_its_output(write_release: Write, call: Callable[..., Any]) -> None:
    write_release(to_task=SPEAKS)

    [output] = call(*range(6))

    assert len(output.entries) == 30


def test_what_was_said_before_an_error_arrives(write_release: Write, call: Callable[..., Any]) -> None:
    write_release(to_task=FAILS)

    [output] = call("x")

    assert [entry.text for entry in output.entries] == ["about to fail"]


def test_a_call_that_says_nothing_has_no_output() -> None:
    assert OutputCollector().to_json() is None


@pytest.mark.parametrize(("name", "value"), [("MAX_ENTRIES", 3), ("MAX_CHARS", 3 * len('{"content": "x"}'))])
def test_entries_beyond_a_limit_are_counted(monkeypatch: pytest.MonkeyPatch, name: str, value: int) -> None:
    monkeypatch.setattr(output_module, name, value)
    collector = OutputCollector()

    for _ in range(5):
        collector.message("x")

    texts = [entry["data"]["content"] for entry in (collector.to_json() or {})["entries"]]
    assert texts[:3] == ["x"] * 3
    assert texts[3].startswith("2 further entries of the plugin were left out")


def test_names_beyond_the_limit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output_module, "MAX_NAMES", 3)
    collector = OutputCollector()

    for number in range(5):
        collector.set_progress(1, 2, f"step {number}")
        collector.set_metrics({f"metric {number}": 1}, "s")

    output = read_output(collector.to_json())
    assert output is not None
    assert (len(output.progress), len(output.metrics["s"])) == (3, 3)


def test_what_is_no_json_or_no_number_does_no_harm() -> None:
    collector = OutputCollector()
    endless: list[Any] = []
    endless.append(endless)

    collector.add("event", {"object": object()}, "no such level")
    collector.add("event", {"number": math.nan})
    collector.add("event", {"endless": endless})
    collector.set_progress(1, 0)
    collector.set_progress(9, 3)
    collector.set_metrics({"loss": math.inf, "name": "x", "good": 1})

    output = read_output(collector.to_json())
    assert output is not None
    assert [entry.level for entry in output.entries] == ["info"] * 4
    assert output.entries[-1].text == 'metrics {"loss": "inf", "name": "x"}'
    assert (output.progress, output.metrics) == ({"plugin": 100.0}, {"plugin": {"good": 1.0}})


@pytest.mark.parametrize("spoilt", ["x", {"entries": [{"event": 3}]}, {"progress": {"a": "b"}}, [1]])
def test_output_that_the_author_has_spoilt_is_dropped(spoilt: Any) -> None:
    assert read_output(spoilt) is None
