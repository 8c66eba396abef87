"""The deployment action without Ray: names, options, plan, and what Serve's words mean."""

import hashlib
from typing import Any

import pytest
from pydantic import BaseModel

from shared.messages import DeployParams
from worker.actions import (
    BaseDeploymentAction,
    BaseServeDeployment,
    DeploymentProgressCategories,
    RuntimeContext,
)
from worker.actions.base import ParamsError
from worker.actions.deployment import action_for
from worker.actions.serve_state import interpret_serve_status
from worker.actions.serve_submit import (
    DIGEST_VARIABLE,
    ServeOptionsError,
    _actor_options,
    _is_identical,
    _surge_percent,
)
from worker.plugins import ActionRequest

ENV = {
    "SYNAPSE_PLUGIN_RELEASE_CODE": "cat@1.0",
    "SYNAPSE_PLUGIN_RELEASE_CHECKSUM": "abc",
    "SYNAPSE_HOST": "http://b",
}


class Params(DeployParams):
    threshold: float = 0.5


class Deploy(BaseDeploymentAction[Params]):
    entrypoint = BaseServeDeployment


def run(operation: str, payload: Any = None, **fields: Any) -> Any:
    request = ActionRequest("cat@1.0", "deployment", "plugin.d.Deploy", env=ENV, **fields)
    return Deploy.run_operation(request, operation, payload)


def test_names_come_from_the_release() -> None:
    action = Deploy({}, RuntimeContext(ENV))
    assert action.get_serve_app_name() == "cat@1.0"
    assert action.get_route_prefix() == "/abc"
    bare = Deploy({}, RuntimeContext({"SYNAPSE_PLUGIN_RELEASE_CODE": "cat@1.0"}))
    assert bare.get_route_prefix() == f"/{hashlib.md5(b'cat@1.0').hexdigest()}"
    with pytest.raises(RuntimeError, match="SYNAPSE_PLUGIN_RELEASE_CODE"):
        Deploy({}, RuntimeContext({})).get_serve_app_name()


def test_resources_come_from_params_then_from_config() -> None:
    action = Deploy({"num_cpus": 2, "num_gpus": 0, "memory": 1024, "threshold": 0.9}, RuntimeContext(ENV))
    assert action.get_ray_actor_options() == {"num_cpus": 2.0, "num_gpus": 0.0, "memory": 1024}
    assert Deploy({}, RuntimeContext(ENV)).get_ray_actor_options() == {}
    assert action.get_runtime_env() == {}
    declared = {"required_cpu_count": 3, "num_gpus": 1, "memory_bytes": 5, "num_replicas": 2}
    plan = run("plan", params={"num_cpus": 0.5}, required_resources=declared)
    assert plan["ray_actor_options"] == {"num_cpus": 0.5, "num_gpus": 1, "memory": 5}
    assert plan["serve_options"] == {"num_replicas": 2}


def test_a_model_that_does_not_know_the_messages_params_still_gets_resources() -> None:
    class Own(BaseModel):
        threshold: float

    class Mine(BaseDeploymentAction[Own]):
        pass

    action = Mine({"threshold": 1, "num_cpus": 2}, RuntimeContext(ENV))
    assert action.params == Own(threshold=1)
    assert action.get_ray_actor_options() == {"num_cpus": 2}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"num_cpu": 1}, "unknown parameter 'num_cpu'"),
        ({"threshold": "x"}, "threshold: "),
        ({"num_cpus": -1}, "num_cpus"),
    ],
)
def test_wrong_parameters_are_refused(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        Deploy(params, RuntimeContext(ENV))


def test_the_digest_changes_with_everything_that_matters() -> None:
    plan = run("plan")
    assert run("plan") == plan
    others = [
        run("plan", params={"num_cpus": 2}),
        run("plan", serve_options={"max_ongoing_requests": 3}),
        run("plan", params={"num_replicas": 2}),
    ]
    assert len({plan["digest"], *(other["digest"] for other in others)}) == 4


class Secretive(BaseDeploymentAction[DeployParams]):
    entrypoint = BaseServeDeployment

    def get_runtime_env(self) -> dict[str, Any]:
        return {"env_vars": {"HF_TOKEN": self.ctx.env["HF_TOKEN"]}}

    def submit(self, plan: Any) -> Any:
        return dict(plan)


def test_a_plan_that_is_kept_holds_no_environment_and_what_is_submitted_does() -> None:
    # Given a plugin that hands a secret of its release on to its replicas
    request = ActionRequest("cat@1.0", "deployment", "plugin.d.D", env=ENV | {"HF_TOKEN": "hf_secret"})
    direct = Secretive({}, RuntimeContext(request.env)).plan()

    # When the worker plans, keeps the plan, and submits it
    plan = Secretive.run_operation(request, "plan", None)
    submitted = Secretive.run_operation(request, "submit", plan)

    # Then the secret is in what is submitted alone, and the digest is over all of it
    assert "hf_secret" not in repr(plan)
    assert submitted["ray_actor_options"]["runtime_env"] == {"env_vars": {"HF_TOKEN": "hf_secret"}}
    assert plan["digest"] == submitted["digest"]
    assert set(submitted) == set(direct)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicas": 2}, "unknown replicas"),
        ({"batch": {"size": 2}}, "batch must be a mapping of"),
        ({"num_replicas": 2, "autoscaling_config": {"min_replicas": 1}}, "not both"),
    ],
)
def test_unknown_serve_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ServeOptionsError, match=message):
        run("plan", serve_options=options)


def test_the_runs_replicas_go_before_autoscaling() -> None:
    plan = run("plan", params={"num_replicas": 2}, serve_options={"autoscaling_config": {"min_replicas": 1}})
    assert plan["serve_options"] == {"num_replicas": 2}


def test_anything_can_be_an_entrypoint() -> None:
    def handler(request: object) -> object:
        return request

    assert action_for(BaseServeDeployment).entrypoint is BaseServeDeployment
    assert type(action_for(handler)({}, RuntimeContext(ENV))).entrypoint is handler


def test_without_entrypoint_or_clients_it_says_what_is_missing() -> None:
    action: BaseDeploymentAction[Any] = BaseDeploymentAction({}, RuntimeContext(ENV))
    with pytest.raises(RuntimeError, match="entrypoint is not set"):
        action.deploy()
    with pytest.raises(RuntimeError, match="no backend client"):
        _ = action.client
    with pytest.raises(RuntimeError, match="no agent client"):
        _ = action.agent_client
    assert action.register_serve_application() is None
    assert action.progress.DEPLOY == DeploymentProgressCategories.DEPLOY == "deploy"


def test_ray_init_never_starts_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(RuntimeError, match="set RAY_ADDRESS"):
        Deploy({}, RuntimeContext(ENV)).ray_init()


def test_the_digest_is_read_back() -> None:
    plan = run("plan") | {
        "ray_actor_options": {"num_cpus": 1, "runtime_env": {"env_vars": {"A": "1"}, "pip": ["x"]}}
    }
    made = _actor_options(plan, {"working_dir": "gcs://p", "env_vars": {"B": "2"}})
    assert made["runtime_env"] == {
        "pip": ["x"],
        "working_dir": "gcs://p",
        "env_vars": {"A": "1", "B": "2", DIGEST_VARIABLE: plan["digest"]},
    }
    running = {"status": "RUNNING", "deployments": {"M": {"deployment_config": {"ray_actor_options": made}}}}
    assert _is_identical(running, plan["digest"])
    assert not _is_identical(running, "other")
    assert not _is_identical(running | {"status": "UNHEALTHY"}, plan["digest"])


@pytest.mark.parametrize(
    ("free", "replicas", "percent"),
    [({"CPU": 8.0}, 2, 100), ({"CPU": 2.0}, 2, 50), ({"CPU": 1.0}, 1, 0), ({"CPU": 3.0}, 3, 33), ({}, 1, 0)],
)
def test_the_surge_is_what_is_free(
    monkeypatch: pytest.MonkeyPatch, free: dict[str, float], replicas: int, percent: int
) -> None:
    monkeypatch.setattr("ray.available_resources", lambda: free)
    assert _surge_percent({"serve_options": {"num_replicas": replicas}}, {"num_cpus": 2}) == percent


TRACE = """The deployment failed to start 3 times in a row. Error:
Exception when allocating Replica(id='z8', deployment='B', app='cat@1.0'):
Traceback (most recent call last):
  File "/x/.venv/lib/python3.11/site-packages/ray/_private/worker.py", line 1055, in get_objects
    raise value
ray.exceptions.ActorDiedError: The actor died, \x1b[36mray::SERVE\x1b[39m (pid=225, ip=127.0.0.2)
  File "/usr/lib/python3.11/concurrent/futures/_base.py", line 456, in result
    return self.__get_result()
           ^^^^^^^^^^^^^^^^^^^
  File "/tmp/ray/s_1/working_dir_files/_ray_pkg_0a1b/plugin/serve.py", line 3, in __init__
    raise ValueError("the weights are gone")
ValueError: the weights are gone at 10.0.0.1:80
"""


def test_serves_words_are_three_buckets_and_a_reason() -> None:
    def state(status: str, message: str = "") -> dict[str, Any]:
        return {"status": status, "message": "app", "deployments": {"B": {"status": "x", "message": message}}}

    assert interpret_serve_status(None) == ("pending", None, "")
    assert interpret_serve_status({}) == ("pending", None, "")
    assert interpret_serve_status(state("RUNNING", "old")) == ("running", "RUNNING", "")
    assert interpret_serve_status(state("DEPLOYING")) == ("pending", "DEPLOYING", "")
    assert interpret_serve_status(state("UNHEALTHY")) == ("failed", "UNHEALTHY", "app")
    bucket, status, reason = interpret_serve_status(state("DEPLOY_FAILED", TRACE))
    assert (bucket, status) == ("failed", "DEPLOY_FAILED")
    assert reason.splitlines() == [
        '  File "plugin/serve.py", line 3, in __init__',
        '    raise ValueError("the weights are gone")',
        "ValueError: the weights are gone at",
    ]
