"""Which way an action goes, or why it cannot work, read from the source of its release."""

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from worker.actions.action_check import check_action
from worker.plugins import PluginStore

Check = Callable[..., str]

SDK_DEPLOY = "from synapse_sdk.plugins import BaseDeploymentAction\n"
SDK_TO_TASK = "from synapse_sdk.plugins.actions.to_task import ToTaskAction\n"
OURS = "from worker.actions import BaseDeploymentAction, BaseServeDeployment, ToTaskAction\n"
STANDARD = """
    class D(BaseDeploymentAction):
        entrypoint = object
        def get_route_prefix(self): return "/x"
        def execute(self):
            self.ray_init()
            self.deploy()
            return {"serve_application": self.register_serve_application()}
"""


@pytest.fixture
def verdict(tmp_path: Path) -> Check:
    """What is said of one action of a release with these modules."""

    def check(name: str, entrypoint: str, **modules: str) -> str:
        release = tmp_path / "store" / "a@1"
        release.mkdir(parents=True)
        (release / "config.yaml").write_text(
            f'code: a\nversion: "1"\nactions: {{{name}: {{entrypoint: {entrypoint}}}}}'
        )
        for module, text in modules.items():
            (release / f"{module}.py").write_text(dedent(text))
        found = PluginStore(tmp_path / "store", tmp_path / "cache", 10**6).get("a@1")
        said = check_action(found, name)
        assert bool(said.way) != bool(said.problem)
        return said.way or said.problem

    return check


@pytest.mark.parametrize(("head", "origin"), [(SDK_DEPLOY, " (published SDK)"), (OURS, "")])
def test_a_deployment_goes_by_the_workers_steps(verdict: Check, head: str, origin: str) -> None:
    said = verdict("deployment", "p.D", p=head + dedent(STANDARD))

    expected = "deploys object on Ray Serve by the worker's steps, with its own get_route_prefix"
    assert said == expected + origin


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("class T(ToTaskAction):\n    def convert_data_from_file(self, *a): ...", "by file"),
        ("class T(ToTaskAction):\n    def setup_inference_params(self, *a): ...", "by inference"),
        ("class T(ToTaskAction[int]):\n    pass", "of which it overrides none"),
        (
            "class B(ToTaskAction):\n    def convert_data_from_file(self, *a): ...\nclass T(B):\n    pass",
            "by file",
        ),
    ],
)
def test_a_to_task_goes_by_its_hooks(verdict: Check, source: str, said: str) -> None:
    expected = f"annotates by its hooks, {said} (published SDK)"
    assert verdict("to_task", "p.T", p=SDK_TO_TASK + source) == expected


def test_a_deployment_of_the_sdk_needs_its_execute(verdict: Check) -> None:
    # Given one that the SDK itself could not make an object of
    said = verdict(
        "deployment", "p.D", p=SDK_DEPLOY + "class D(BaseDeploymentAction):\n    entrypoint = object"
    )

    assert "D has no execute()" in said


def test_a_deployment_of_ours_needs_no_execute(verdict: Check) -> None:
    said = verdict("deployment", "p.D", p=OURS + "class D(BaseDeploymentAction):\n    entrypoint = object")

    assert said == "deploys object on Ray Serve by the worker's steps"


def test_a_mistake_in_a_module_that_is_imported_is_named(verdict: Check) -> None:
    source = OURS + "from words import WORD\nclass T(ToTaskAction):\n    pass\n"

    said = verdict("to_task", "p.T", p=source, words="import deeper\nWORD = 1\n", deeper="def f(:\n")

    assert said == "deeper.py, line 1: invalid syntax"


def test_modules_that_nobody_imports_are_not_read(verdict: Check) -> None:
    source = OURS + "import p, numpy\nclass T(ToTaskAction):\n    pass\n"

    assert verdict("to_task", "p.T", p=source, old="print 1\n").startswith("annotates by its hooks")


def test_bases_are_found_through_imports(verdict: Check) -> None:
    # Given a class whose base is another module's, under another name, which has it from the SDK's module
    said = verdict(
        "to_task",
        "p.T",
        p="from q import Base as B\nclass T(B):\n    pass",
        q="""
            import synapse_sdk.plugins.actions.to_task as sdk
            class Base(sdk.ToTaskAction):
                def convert_data_from_file(self, *arguments): ...
        """,
    )

    assert said == "annotates by its hooks, by file (published SDK)"


@pytest.mark.parametrize(
    ("action", "source", "problem"),
    [
        ("to_task", "class X:\n    pass", "p.X is no ToTaskAction, so it cannot annotate"),
        ("to_task", "def X(request): ...", "p.X is no class, and annotating needs a ToTaskAction"),
        (
            "to_task",
            f"{OURS}class X(BaseServeDeployment): ...",
            "p.X is no ToTaskAction, so it cannot annotate",
        ),
        (
            "deployment",
            f"{SDK_TO_TASK}class X(ToTaskAction): ...",
            "p.X is a ToTaskAction, which cannot be deployed",
        ),
        (
            "deployment",
            "from synapse_sdk.plugins.actions.train import BaseTrainAction\nclass X(BaseTrainAction): ...",
            "p.X is neither a BaseDeploymentAction nor a BaseServeDeployment, so it cannot be deployed",
        ),
        (
            "deployment",
            f"{OURS}class X(BaseDeploymentAction): ...",
            "X sets no entrypoint: name the class to deploy",
        ),
        (
            "deployment",
            f"{OURS}class T(ToTaskAction): ...\nclass X(BaseDeploymentAction):\n    entrypoint = T",
            "entrypoint of X is T, an action, which Ray Serve cannot run",
        ),
        (
            "deployment",
            "class X:\n    def __init__(self, params, ctx): ...",
            "X.__init__ needs params, ctx; only the backend's URL can be given",
        ),
        (
            "deployment",
            "class X:\n    def __init__(self, backend_url, *, limit): ...",
            "X.__init__ needs backend_url, limit; only the backend's URL can be given",
        ),
        (
            "deployment",
            f"{OURS}class X(BaseDeploymentAction):\n    entrypoint = int\n    def setup_steps(s, r): 1 / 0",
            "X overrides setup_steps(), which nobody calls: the worker's own steps call the get_ methods,"
            " entrypoint, and the class that is served, and an action that runs whole begins with execute()",
        ),
        (
            "to_task",
            f"{OURS}class X(ToTaskAction):\n    def __init__(self, params, ctx, model): ...",
            "X.__init__ needs params, ctx, model; an action is given params and ctx",
        ),
    ],
)
def test_what_cannot_work_is_named(verdict: Check, action: str, source: str, problem: str) -> None:
    assert verdict(action, "p.X", p=source) == f"action {action!r}: {problem}"


@pytest.mark.parametrize(
    ("action", "head", "method", "way"),
    [
        ("to_task", f"{SDK_TO_TASK}class X(ToTaskAction):", "execute", "execute() (published SDK)"),
        ("to_task", f"{SDK_TO_TASK}class X(ToTaskAction):", "setup_steps", "setup_steps() (published SDK)"),
        ("to_task", f"{OURS}class X(ToTaskAction):", "run", "run()"),
        ("deployment", f"{SDK_DEPLOY}class X(BaseDeploymentAction):", "deploy", "deploy() (published SDK)"),
        ("deployment", f"{OURS}class X(BaseDeploymentAction):", "execute", "execute()"),
    ],
)
def test_an_action_with_steps_of_its_own_runs_whole(
    verdict: Check, action: str, head: str, method: str, way: str
) -> None:
    said = verdict(action, "p.X", p=f"{head}\n    def {method}(self, *more):\n        open('x', 'w')")

    assert said == f"runs whole, as a Ray job, for its own {way}"


def test_an_action_that_the_worker_has_no_steps_for_runs_whole(verdict: Check) -> None:
    source = "from synapse_sdk.plugins.actions.train import BaseTrainAction\nclass X(BaseTrainAction): ..."

    assert verdict("train", "p.X", p=source) == "runs whole, as a Ray job (published SDK)"


@pytest.mark.parametrize(
    ("action", "source", "way"),
    [
        ("deployment", "@serve.deployment\nclass X: ...", "deploys X on Ray Serve"),
        ("deployment", "X = build()", "deploys p.X on Ray Serve"),
        ("deployment", "from q import *", "deploys p.X on Ray Serve"),
        ("deployment", f"{OURS}class X(make()): ...", "deploys X on Ray Serve"),
        ("to_task", "class X(make()): ...", "annotates by p.X, whose bases its source does not show"),
        ("to_task", "class X(X): ...", "annotates by p.X, whose bases its source does not show"),
        ("train", "class X: ...", "is no deployment and no to_task, so nothing runs it here"),
        ("mine", f"{OURS}class X(ToTaskAction): ...", "annotates by its hooks, of which it overrides none"),
    ],
)
def test_what_the_source_does_not_show_is_no_problem(
    verdict: Check, action: str, source: str, way: str
) -> None:
    assert verdict(action, "p.X", p=source) == way


def test_a_property_may_be_the_entrypoint(verdict: Check) -> None:
    source = f"{OURS}class X(BaseDeploymentAction):\n    @property\n    def entrypoint(self): return int"

    said = verdict("deployment", "p.X", p=source)

    assert said == "deploys what its property entrypoint says on Ray Serve by the worker's steps"
