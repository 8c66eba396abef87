"""The deployment action without Ray: its names, options and plan, and the capacity gate before it."""

import hashlib
import logging
from typing import Any

import pytest
from pydantic import BaseModel
from ray import serve

from shared.messages import DeployParams
from tests.unit.actions.deployment_action import ENV, Deploy, run
from worker.actions import (
    BaseDeploymentAction,
    BaseServeDeployment,
    DeploymentProgressCategories,
    RuntimeContext,
    deployment,
)
from worker.actions.base import ParamsError
from worker.actions.deployment import action_for, check_serve_capacity
from worker.actions.overrides import UncalledMethodError
from worker.actions.replica_needs import gate_options
from worker.actions.serve_submit import ServeOptionsError
from worker.platform import (
    AuthenticationError,
    ClientConnectionError,
    ClientError,
    ClientTimeoutError,
    MalformedResponseError,
    ServerError,
)
from worker.plugins import ActionRequest


def test_names_are_taken_from_the_release() -> None:
    action = Deploy({}, RuntimeContext(ENV))
    assert action.get_serve_app_name() == "cat@1.0"
    assert action.get_route_prefix() == "/abc"
    bare = Deploy({}, RuntimeContext({"SYNAPSE_PLUGIN_RELEASE_CODE": "cat@1.0"}))
    assert bare.get_route_prefix() == f"/{hashlib.md5(b'cat@1.0').hexdigest()}"
    with pytest.raises(RuntimeError, match="SYNAPSE_PLUGIN_RELEASE_CODE"):
        Deploy({}, RuntimeContext({})).get_serve_app_name()


def test_resources_are_taken_from_params_then_config() -> None:
    action = Deploy({"num_cpus": 2, "num_gpus": 0, "memory": 1024, "threshold": 0.9}, RuntimeContext(ENV))
    assert action.get_ray_actor_options() == {"num_cpus": 2.0, "num_gpus": 0.0, "memory": 1024}
    assert Deploy({}, RuntimeContext(ENV)).get_ray_actor_options() == {}
    assert action.get_runtime_env() == {}
    declared = {"required_cpu_count": 3, "num_gpus": 1, "memory_bytes": 5, "num_replicas": 2}
    plan = run("plan", params={"num_cpus": 0.5}, required_resources=declared)
    assert plan["ray_actor_options"] == {"num_cpus": 0.5, "num_gpus": 1, "memory": 5}
    assert plan["serve_options"] == {"num_replicas": 2}


def test_model_without_the_messages_params_gets_resources() -> None:
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
def test_wrong_parameters_are_rejected(params: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        Deploy(params, RuntimeContext(ENV))


def test_digest_changes_with_params_and_options() -> None:
    plan = run("plan")
    assert run("plan") == plan
    others = [
        run("plan", params={"num_cpus": 2}),
        run("plan", serve_options={"max_ongoing_requests": 3}),
        run("plan", params={"num_replicas": 2}),
    ]
    assert len({plan["digest"], *(other["digest"] for other in others)}) == 4


def test_a_plan_says_how_many_requests_are_taken_at_once() -> None:
    assert run("plan")["requests_at_once"] == 5
    assert run("plan", params={"num_replicas": 3})["requests_at_once"] == 15
    assert run("plan", serve_options={"max_ongoing_requests": 3})["requests_at_once"] == 3


class Secretive(BaseDeploymentAction[DeployParams]):
    entrypoint = BaseServeDeployment

    def get_runtime_env(self) -> dict[str, Any]:
        return {"env_vars": {"HF_TOKEN": self.ctx.env["HF_TOKEN"]}}

    def submit(self, plan: Any) -> Any:
        return dict(plan)


def test_environment_is_in_the_submission_not_in_the_plan() -> None:
    # Given a plugin that passes a secret of its release to its replicas
    request = ActionRequest("cat@1.0", "deployment", "plugin.d.D", env=ENV | {"HF_TOKEN": "hf_secret"})
    direct = Secretive({}, RuntimeContext(request.env)).plan()

    # When the worker plans, stores the plan, and submits it
    plan = Secretive.run_operation(request, "plan", None)
    submitted = Secretive.run_operation(request, "submit", plan)

    # Then only the submission has the secret, and the digest covers all of it
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
def test_unknown_serve_options_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ServeOptionsError, match=message):
        run("plan", serve_options=options)


def test_replicas_of_the_run_replace_autoscaling() -> None:
    plan = run("plan", params={"num_replicas": 2}, serve_options={"autoscaling_config": {"min_replicas": 1}})
    assert plan["serve_options"] == {"num_replicas": 2}


def test_classes_and_functions_can_be_entrypoints() -> None:
    def handler(request: object) -> object:
        return request

    assert action_for(BaseServeDeployment).entrypoint is BaseServeDeployment
    assert type(action_for(handler)({}, RuntimeContext(ENV))).entrypoint is handler


def test_missing_entrypoint_or_client_is_named() -> None:
    action: BaseDeploymentAction[Any] = BaseDeploymentAction({}, RuntimeContext(ENV))
    with pytest.raises(RuntimeError, match="entrypoint is not set"):
        action.deploy()
    with pytest.raises(RuntimeError, match="no backend client"):
        _ = action.client
    with pytest.raises(RuntimeError, match="no agent client"):
        _ = action.agent_client
    assert action.register_serve_application() is None
    assert action.progress.DEPLOY == DeploymentProgressCategories.DEPLOY == "deploy"


@pytest.mark.parametrize("identifier", [7, "b2a7"])
def test_a_registration_says_the_records_id(monkeypatch: pytest.MonkeyPatch, identifier: int | str) -> None:
    class Backend:
        def create_serve_application(self, **record: Any) -> dict[str, Any]:
            assert record["data"] == {"name": "cat@1.0", "route_prefix": "/before"}
            return {"id": identifier}

    details = {"cat@1.0": {"status": "RUNNING", "route_prefix": "/before"}}
    monkeypatch.setattr("worker.actions.serve_state.serve_details", lambda: details)
    context = RuntimeContext(ENV, job_id="42", client=Backend())

    assert Deploy({}, context).register_serve_application() == identifier


def test_ray_init_never_starts_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(RuntimeError, match="set RAY_ADDRESS"):
        Deploy({}, RuntimeContext(ENV)).ray_init()


class Agent:
    """Returns or raises the given answer."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []

    def check_feasibility(self, **asked: Any) -> Any:
        self.asked.append(asked)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def check_capacity(
    agent: Any, actor: dict[str, Any] | None = None, serve: dict[str, Any] | None = None
) -> None:
    check_serve_capacity(
        agent,
        app_name="cat@1.0",
        agent=7,
        ray_actor_options=actor or {},
        serve_options=serve or {},
        logger=logging.getLogger("gate"),
    )


def test_gate_asks_once_with_defaults() -> None:
    agent = Agent({"allowed": True})
    check_capacity(agent)
    assert agent.asked == [
        {
            "kind": "serve",
            "num_cpus": 1.0,
            "num_gpus": 0.0,
            "memory_bytes": None,
            "replicas": 1,
            "metadata": {"plugin_code": "cat@1.0", "agent": 7},
        }
    ]


@pytest.mark.parametrize(
    ("serve", "replicas"),
    [
        ({"num_replicas": 3}, 3),
        ({"num_replicas": "auto"}, 1),
        ({"autoscaling_config": {"min_replicas": 2, "max_replicas": 9}}, 2),
        ({"autoscaling_config": {"min_replicas": 2, "initial_replicas": 4}}, 4),
        ({"autoscaling_config": {"min_replicas": 0}}, 1),
        ({"autoscaling_config": {}}, 1),
    ],
)
def test_gate_asks_for_every_replica(serve: dict[str, Any], replicas: int) -> None:
    agent = Agent({"allowed": True})
    check_capacity(agent, {"num_cpus": 2, "num_gpus": 0.5, "memory": 1024}, serve)
    asked = agent.asked[0]
    assert (asked["num_cpus"], asked["num_gpus"], asked["memory_bytes"]) == (2.0, 0.5, 1024)
    assert asked["replicas"] == replicas


def test_denial_prints_the_reasons_as_python_does() -> None:
    with pytest.raises(RuntimeError) as caught:
        check_capacity(Agent({"allowed": False, "reasons": ["not enough CPU", "quota"]}))
    assert str(caught.value) == (
        "Serve deploy denied: insufficient cluster capacity (['not enough CPU', 'quota'])"
    )
    with pytest.raises(RuntimeError, match=r"\(\[\]\)$"):
        check_capacity(Agent({"allowed": False}))


def test_a_very_long_reason_is_cut() -> None:
    with pytest.raises(RuntimeError) as caught:
        check_capacity(Agent({"allowed": False, "reasons": ["no GPU", "y" * 5_000_000, "never read"]}))
    message = str(caught.value)
    assert message.startswith("Serve deploy denied: insufficient cluster capacity (['no GPU', 'yyy")
    assert message.endswith("y…'])")
    assert len(message) < 2_100


def test_very_many_reasons_are_cut() -> None:
    with pytest.raises(RuntimeError) as caught:
        check_capacity(Agent({"allowed": False, "reasons": [{"node": node} for node in range(100_000)]}))
    assert "([{'node': 0}, {'node': 1}, " in str(caught.value)
    assert len(str(caught.value)) < 2_100


def test_reasons_that_are_no_text_have_no_secrets() -> None:
    reason = {"detail": "see http://u:pw@h/x?token=abc123", "token": "deadbeef99", "free": [1, 0.5]}
    with pytest.raises(RuntimeError) as caught:
        check_capacity(Agent({"allowed": False, "reasons": [reason]}))
    assert str(caught.value).endswith("([{'detail': 'see <url>', 'token': '***', 'free': [1, 0.5]}])")


@pytest.mark.parametrize(
    "error",
    [
        ClientError("x"),
        ClientTimeoutError("x"),
        ClientConnectionError("x"),
        AuthenticationError("x"),
        ServerError("x"),
        TimeoutError("x"),
        ConnectionError("x"),
        ConnectionRefusedError("x"),
        OSError("x"),
    ],
)
def test_agent_that_cannot_be_reached_denies(error: Exception) -> None:
    with pytest.raises(RuntimeError) as caught:
        check_capacity(Agent(error))
    name = type(error).__name__
    assert str(caught.value) == f"Serve deploy capacity check failed: agent unreachable ({name})"
    assert type(caught.value.__cause__) is type(error)


@pytest.mark.parametrize(
    "answer",
    [
        None,
        [],
        "yes",
        {},
        {"allowed": "true"},
        {"allowed": 1},
        {"allowed": None},
        MalformedResponseError("x"),
    ],
)
def test_malformed_answer_denies(answer: Any) -> None:
    with pytest.raises(RuntimeError) as caught:
        check_capacity(Agent(answer))
    assert str(caught.value) == "Serve deploy capacity check failed: agent unreachable (MalformedResponse)"
    assert isinstance(caught.value.__cause__, MalformedResponseError)


def test_cause_of_a_denial_has_no_secrets() -> None:
    with pytest.raises(RuntimeError) as caught:
        check_capacity(Agent(ConnectionError("http://agent.test/resources?token=hush failed")))
    assert "hush" not in str(caught.value.__cause__)
    assert "agent.test" not in str(caught.value.__cause__)


def test_gate_without_an_agent_warns_and_passes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_capacity(None)
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("WARNING", "serve capacity gate skipped: agent_client not provided")
    ]


def test_other_errors_are_raised_unchanged() -> None:
    with pytest.raises(ZeroDivisionError):
        check_capacity(Agent(ZeroDivisionError()))


def test_gate_reads_its_messages_when_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "_CAPACITY_DENIED_MSG", "no: {reasons}")
    ctx = RuntimeContext({"SYNAPSE_PLUGIN_RELEASE_CODE": "cat@1.0"}, agent_client=Agent({"allowed": False}))
    action: BaseDeploymentAction[Any] = BaseDeploymentAction({}, ctx)
    with pytest.raises(RuntimeError, match=r"^no: \[\]$"):
        action._check_serve_capacity({}, {})


def test_entrypoint_may_be_a_property(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an action that chooses what it deploys by its parameters
    class Chooses(BaseDeploymentAction[DeployParams]):
        @property
        def entrypoint(self) -> Any:
            return f"for {self.params.num_cpus}"

    submitted: list[Any] = []

    def submit(target: Any, *_: Any) -> dict[str, Any]:
        submitted.append(target)
        return {}

    monkeypatch.setattr("worker.actions.serve_submit.submit", submit)

    # When it is submitted
    Chooses({"num_cpus": 2}, RuntimeContext(ENV)).submit({})

    # Then the property's value is deployed
    assert submitted == ["for 2.0"]


def test_a_method_of_the_authors_makes_the_action_run_whole() -> None:
    class Mine(Deploy):
        def deploy(self) -> None:
            self.logger.info("in its own way")
            raise RuntimeError("never called by the worker")

    request = ActionRequest("cat@1.0", "deployment", "plugin.d.Mine", env=ENV)

    plan = Mine.run_operation(request, "plan", {"whole_run": True})

    assert plan["whole_run"] == {"methods": ["deploy"], "runner": "worker"}
    # And a worker that cannot run it whole would ignore the method
    with pytest.raises(UncalledMethodError, match=r"Mine overrides deploy\(\)"):
        Mine.run_operation(request, "plan", None)


def test_a_method_that_nobody_calls_is_rejected() -> None:
    class Mine(Deploy):
        def setup_steps(self, registry: Any) -> None:
            registry.register(self)

    request = ActionRequest("cat@1.0", "deployment", "plugin.d.Mine", env=ENV)

    with pytest.raises(UncalledMethodError, match=r"Mine overrides setup_steps\(\), which nobody calls"):
        Mine.run_operation(request, "plan", {"whole_run": True})


def test_the_documents_execute_is_the_workers_steps() -> None:
    class Mine(Deploy):
        def execute(self) -> dict[str, Any]:
            self.ray_init()
            self.deploy()
            self.log_message("deployed")
            return {"serve_application": self.register_serve_application()}

    request = ActionRequest("cat@1.0", "deployment", "plugin.d.Mine", env=ENV)
    assert Mine.run_operation(request, "plan", None)["app_name"] == "cat@1.0"


@pytest.mark.parametrize(
    ("params", "resources", "asked"),
    [
        # A dispatch for a release that declares nothing, or the CPU; and a run with its own replicas
        ({"num_cpus": 1, "num_gpus": 0.1}, {}, (3, 0.1, 3)),
        ({"num_cpus": 1, "num_gpus": 0.1}, {"required_cpu_count": 1}, (3, 0.1, 2)),
        ({"num_cpus": 6, "num_gpus": 0, "num_replicas": 5}, {}, (6, 0, 6)),
    ],
)
def test_the_gate_is_asked_for_what_a_composition_needs(
    params: dict[str, Any], resources: dict[str, Any], asked: tuple[float, ...]
) -> None:
    # Given an application of a model of three CPUs and an ingress that scales
    scaled = {"min_replicas": 2, "max_replicas": 3}
    model = serve.deployment(BaseServeDeployment, ray_actor_options={"num_cpus": 3}).bind("u")
    ingress = serve.deployment(
        BaseServeDeployment, name="ingress", autoscaling_config=scaled, ray_actor_options={"num_cpus": 2}
    )
    action = action_for(ingress.bind(model))

    # When it is planned
    request = ActionRequest(
        "cat@1.0", "deployment", "plugin.app", env=ENV, params=params, required_resources=resources
    )
    plan = action.run_operation(request, "plan", None)

    # Then the gate asks for the larger kind, so often that both fit
    actor_options, serve_options = gate_options(plan)
    found = (actor_options["num_cpus"], actor_options["num_gpus"], serve_options["num_replicas"])
    assert found == asked


def test_a_plain_class_is_asked_for_as_planned() -> None:
    plan = run("plan", params={"num_cpus": 2, "num_replicas": 3})
    assert "capacity" not in plan
    assert gate_options(plan) == ({"num_cpus": 2.0}, {"num_replicas": 3})


def test_options_of_the_installed_serve_are_known() -> None:
    plan = run(
        "plan",
        params={"num_cpus": 1, "num_gpus": 0.1},
        serve_options={
            "user_config": {"a": 1},
            "ray_actor_options": {"num_cpus": 2, "accelerator_type": "L4"},
        },
    )
    assert plan["serve_options"] == {"user_config": {"a": 1}}
    assert plan["ray_actor_options"] == {"num_cpus": 2, "accelerator_type": "L4", "num_gpus": 0.1}


@pytest.mark.parametrize(
    ("options", "planned"),
    [
        ({"autoscaling_config": "auto"}, {"num_replicas": "auto"}),
        (
            {"num_replicas": "auto", "autoscaling_config": {"max_replicas": 3}},
            {"num_replicas": "auto", "autoscaling_config": {"max_replicas": 3}},
        ),
    ],
)
def test_autoscaling_can_be_auto(options: dict[str, Any], planned: dict[str, Any]) -> None:
    assert run("plan", serve_options=options)["serve_options"] == planned
