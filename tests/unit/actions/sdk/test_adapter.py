"""Actions of the published SDK, called as a host calls them."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent, indent
from types import SimpleNamespace
from typing import Any

import pytest

from tests.harness.in_process_host import InProcessHost
from tests.harness.sdk_modules import write_sdk_modules
from worker.actions.sdk import action_for
from worker.actions.sdk.adapter import SdkOtherAction
from worker.plugins import ActionRequest, ClientAccess, PluginCallError, PluginStore, request_for
from worker.plugins.output import PluginOutput

PARAMS = {"name": "n", "project": 7, "nobody declares": 1}
ACCESS = ClientAccess("http://backend", "plugin-token", "acme", "http://agent")
CONFIG = """
    code: cat
    version: "1.0"
    env: {GREETING: hello}
    actions:
        to_task: {entrypoint: plugin.ToTask}
        deployment: {entrypoint: plugin.Deploy}
        train: {entrypoint: plugin.Train}
"""
FILES = {"primary_file_url": "u", "primary_file_name": "n", "data_file_url": "d", "data_file_name": "f"}

TO_TASK = """
    from synapse_sdk.plugins.actions.to_task.action import ToTaskAction
    class ToTask(ToTaskAction):
"""
DEPLOY = """
    from pydantic import BaseModel
    from synapse_sdk.plugins.actions.inference.deployment import BaseDeploymentAction
    class Params(BaseModel):
        num_cpus: float = 4
    class Deploy(BaseDeploymentAction):
        params_model = Params
        def execute(self):
            self.ray_init()
            self.deploy()
            return {"serve_application": self.register_serve_application()}
"""


class Host:
    """Calls operations of the release that a test has written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.output: list[PluginOutput] = []
        self._host = InProcessHost(on_output=lambda _, output: self.output.append(output))

    def write(self, head: str, body: str) -> None:
        release = self._folder / "store" / "cat@1.0"
        release.mkdir(parents=True)
        (release / "config.yaml").write_text(dedent(CONFIG))
        (release / "plugin.py").write_text(f"{dedent(head)}{indent(dedent(body), '    ')}")
        write_sdk_modules(release)

    def call(self, operation: str, payload: Any = None, action: str = "to_task", **params: Any) -> Any:
        store = PluginStore(self._folder / "store", self._folder / "cache", 10**6)
        release = store.get("cat@1.0")
        given = {**(PARAMS if action == "to_task" else {}), **params}
        request = request_for(release, action, given, ACCESS, job="42", language="ko")
        return self._host.call(release, request, operation, payload)

    def plan(self, **params: Any) -> Any:
        return self.call("plan", action="deployment", **params)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def to_task(host: Host) -> Callable[[str], Host]:
    def write(body: str) -> Host:
        host.write(TO_TASK, body)
        return host

    return write


@pytest.fixture
def deploy(host: Host) -> Iterator[Callable[[str], Host]]:
    def write(body: str) -> Host:
        host.write(DEPLOY, body)
        return host

    return write


def test_hooks_are_called_by_position(to_task: Callable[[str], Host]) -> None:
    # Given hooks whose parameters have other names than the SDK's
    host = to_task("""
        def convert_data_from_file(self, a, b, c, d, task_data=None):
            return {"got": [a, b, c, d, task_data]}
        def convert_data_from_inference(self, result, task_data=None):
            return {"got": [result, task_data]}
        def setup_inference_params(self, a, b, c, **others):
            return {"got": [a, b, c], **others}
""")

    # Then each gets what belongs there
    assert host.call("convert_from_files", [{**FILES, "task_data": {"id": 1}}]) == [
        {"ok": {"got": ["u", "n", "d", "f", {"id": 1}]}}
    ]
    assert host.call("convert_from_inference", [{"inference_data": 5, "task_data": None}]) == [
        {"ok": {"got": [5, None]}}
    ]
    item = {"primary_file_url": "u", "primary_file_name": "n", "data_files": [], "model_id": 3}
    assert host.call("prepare_inference", [item]) == [{"ok": {"got": ["u", "n", []], "model_id": 3}}]


def test_params_model_ignores_unknown_keys(to_task: Callable[[str], Host]) -> None:
    host = to_task("""
        def convert_data_from_inference(self, result, task_data=None):
            return {"params": self.params.model_dump(), "context": self.context.params}
""")

    known = {"name": "n", "project": 7}
    assert host.call("check_params", {}) == {"ok": True}
    assert host.call("convert_from_inference", [{"inference_data": 5}]) == [
        {"ok": {"params": known, "context": known}}
    ]


def test_a_wrong_value_is_named(to_task: Callable[[str], Host]) -> None:
    host = to_task("        x = 1")

    with pytest.raises(PluginCallError) as caught:
        host.call("check_params", {}, project="x")

    assert caught.value.error_type == "ParamsError"
    assert "project: Input should be a valid integer" in caught.value.message


def test_the_context_has_the_lesser_token(to_task: Callable[[str], Host]) -> None:
    host = to_task("""
        def convert_data_from_inference(self, result, task_data=None):
            ctx = self.ctx
            return {"client": vars(ctx.client), "agent": vars(ctx.agent_client), "job": ctx.job_id,
                    "language": ctx.language, "greeting": ctx.env.data["GREETING"]}
""")

    [answer] = host.call("convert_from_inference", [{"inference_data": 5}])

    assert answer["ok"] == {
        "client": {"host": "http://backend", "access_token": "plugin-token", "tenant": "acme"},
        "agent": {"url": "http://agent", "agent_token": "plugin-token", "tenant": "acme"},
        "job": "42", "language": "ko", "greeting": "hello",
    }  # fmt: skip


def test_one_object_serves_all_batches_of_a_run(to_task: Callable[[str], Host]) -> None:
    host = to_task("""
        loaded = None
        def convert_data_from_inference(self, result, task_data=None):
            self.loaded = (self.loaded or 0) + 1
            return {"calls": self.loaded}
""")

    answers = [host.call("convert_from_inference", [{"inference_data": 5}]) for _ in range(2)]
    other_run = host.call("convert_from_inference", [{"inference_data": 5}], name="another")

    assert [*answers, other_run] == [[{"ok": {"calls": 1}}], [{"ok": {"calls": 2}}], [{"ok": {"calls": 1}}]]


def test_what_the_loggers_get_is_the_calls_output(to_task: Callable[[str], Host]) -> None:
    host = to_task("""
        def convert_data_from_inference(self, result, task_data=None):
            from synapse_sdk.plugins.models.logger import LogLevel
            log = self.ctx.logger
            log.log(LogLevel.WARNING, "message", {"content": "careful"}, step="read")
            log.log_metric("train", "epoch", 3, loss=0.5)
            log.log_visualization("val", "g", 0, "/x.png")
            log.set_progress(1, 4, "read")
            log.set_metrics({"files": 2}, "read")
            return {}
""")

    host.call("convert_from_inference", [{"inference_data": 5}])

    [output] = host.output
    assert [(entry.event, entry.level, entry.step) for entry in output.entries] == [
        ("message", "warning", "read"), ("metric", "info", ""), ("visualization", "info", ""),
    ]  # fmt: skip
    assert output.entries[1].data["metrics"] == {"loss": 0.5}
    assert output.entries[2].data["file"] == "/x.png"
    assert (output.progress, output.metrics) == ({"read": 25.0}, {"read": {"files": 2.0}})


def test_only_the_getters_that_the_author_overrides_are_asked(deploy: Callable[[str], Host]) -> None:
    # Given an author who overrides one of the getters, with the SDK's as its base
    host = deploy("""
        def get_ray_actor_options(self):
            return {**super().get_ray_actor_options(), "num_gpus": 1}
""")

    # When the deployment is planned
    plan = host.plan(num_cpus=2)

    # Then that one is the author's, and the others are the worker's
    assert plan["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 1, "of": "the SDK"}
    assert plan["app_name"] == "cat@1.0"


def test_the_authors_params_decide_resources(deploy: Callable[[str], Host]) -> None:
    host = deploy("        x = 1")

    assert host.plan()["ray_actor_options"] == {"num_cpus": 4.0}
    assert host.plan(num_cpus=2, num_replicas=3)["serve_options"] == {"num_replicas": 3}


def test_entrypoint_may_be_a_property(deploy: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[Any] = []

    def submit(target: Any, plan: Any, runtime_env: Any, url: str, *_: Any) -> dict[str, Any]:
        submitted.append((target, url))
        return {}

    monkeypatch.setattr("worker.actions.serve_submit.submit", submit)
    host = deploy("""
        @property
        def entrypoint(self):
            return f"a class for {self.params.num_cpus}"
""")

    host.call("submit", host.plan(), action="deployment")

    assert submitted == [("a class for 4", "http://backend")]


def test_the_templates_execute_is_the_workers_steps(deploy: Callable[[str], Host]) -> None:
    host = deploy('''
        def execute(self):
            """Deploy inference endpoint to Ray Serve."""
            self.ray_init()
            self.set_progress(1, 3, self.progress.INITIALIZE)
            self.deploy()
            app_id = self.register_serve_application()
            return {"serve_application": app_id}
''')

    assert host.plan()["app_name"] == "cat@1.0"


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("execute", "self.deploy(); open('x', 'w'); return {}"),
        ("deploy", "print('mine')"),
        ("setup_steps", "registry.register(object())"),
    ],
)
def test_a_method_of_the_authors_makes_the_action_run_whole(
    deploy: Callable[[str], Host], method: str, body: str
) -> None:
    host = deploy(f"        def {method}(self, *registry):\n            {body}\n")

    # Then the plan says so to a worker that can do that, beside what the capacity gate needs
    plan = host.call("plan", {"whole_run": True}, action="deployment")
    assert plan["whole_run"] == {"methods": [method], "runner": "sdk"}
    assert plan["app_name"] == "cat@1.0"
    # And an older worker, which would ignore the method, gets an error
    with pytest.raises(PluginCallError, match=rf"Deploy overrides {method}\(\)"):
        host.plan()


def test_a_to_task_with_an_execute_of_its_own_runs_whole(to_task: Callable[[str], Host]) -> None:
    host = to_task("        def execute(self):\n            return {'all': 'done'}\n")

    checked = host.call("check_params", {"whole_run": True})

    assert checked == {"ok": True, "whole_run": {"methods": ["execute"], "runner": "sdk"}}


TRAIN = """
    from synapse_sdk.plugins.action import BaseAction
    class Train(BaseAction):
"""


@pytest.mark.parametrize("operation", ["plan", "check_params"])
def test_an_action_of_another_kind_always_runs_whole(host: Host, operation: str) -> None:
    host.write(TRAIN, "        params_model = None\n        def execute(self): return {}\n")

    answer = host.call(operation, {"whole_run": True}, action="train")

    assert answer["whole_run"] == {"methods": ["execute"], "runner": "sdk"}


def test_an_action_of_another_kind_is_no_deployment(host: Host) -> None:
    host.write(
        TRAIN.replace("Train", "Deploy"),
        "        params_model = None\n        def execute(self): return {}\n",
    )

    with pytest.raises(PluginCallError, match="of another kind than the action 'deployment' needs"):
        host.call("plan", {"whole_run": True}, action="deployment")


def test_a_slow_constructor_delays_no_other_action(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an action whose constructor does not return until it may
    begun, may_go_on = threading.Event(), threading.Event()

    class Author:
        def __init__(self, *_: Any) -> None:
            begun.set()
            may_go_on.wait(30)

    class Other:
        def __init__(self, *_: Any) -> None: ...

    context = SimpleNamespace(logger=SimpleNamespace(), client=None)
    monkeypatch.setattr("worker.actions.sdk.author.make_context", lambda request: context)
    slow = type("Slow", (SdkOtherAction,), {"author": Author})
    quick = type("Quick", (SdkOtherAction,), {"author": Other})
    request = ActionRequest("cat@1.0", "train", "plugin.Train")
    with ThreadPoolExecutor(2) as pool:
        made = pool.submit(slow.from_request, request)
        try:
            assert begun.wait(10)

            # When another action is made meanwhile, then it is made at once
            assert pool.submit(quick.from_request, request).result(10).action is not None
            assert not made.done()
        finally:
            may_go_on.set()


def test_anything_else_is_what_serve_can_run() -> None:
    class Served: ...

    assert action_for(Served).entrypoint is Served
