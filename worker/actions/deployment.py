"""Deploy a model on Ray Serve: the class that authors subclass, and the capacity gate before it."""

import hashlib
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel
from typing_extensions import TypeVar

from shared.messages import DISPATCH_DEFAULTS, RESOURCE_KEYS, DeployParams, JsonObject
from worker.actions import serve_submit
from worker.actions.base import BaseAction
from worker.actions.overrides import ActionKind
from worker.actions.replica_needs import gate_options, initial_replicas
from worker.platform import ClientError, clean_exception, error_type
from worker.plugins.requests import requests_at_once

P = TypeVar("P", bound=BaseModel, default=DeployParams)


_CAPACITY_DENIED_MSG = "Serve deploy denied: insufficient cluster capacity ({reasons})"
_CAPACITY_UNREACHABLE_MSG = "Serve deploy capacity check failed: agent unreachable ({error_type})"
_CAPACITY_SKIP_LOG = "serve capacity gate skipped: agent_client not provided"


def check_serve_capacity(
    agent_client: Any,
    *,
    app_name: str,
    agent: int | str | None,
    ray_actor_options: Mapping[str, Any],
    serve_options: Mapping[str, Any],
    logger: Any,
) -> None:
    """Ask the agent once whether the cluster has capacity (contract: "Errors that users read"; seeds).

    Args:
        agent_client: The `AgentClient` of the cluster; with None a warning is logged and the gate is passed.
        app_name: Name of the Serve application.
        agent: Id of the agent.
        ray_actor_options: `num_cpus`, `num_gpus` and `memory` (bytes) of one replica.
        serve_options: `num_replicas` or `autoscaling_config`.
        logger: Where the warning goes.

    Raises:
        CapacityDeniedError: The agent denies the deployment.
        CapacityUnknownError: The agent cannot be reached or answers something malformed; its `__cause__` is
            the original error without secrets.
    """
    if agent_client is None:
        logger.warning(_CAPACITY_SKIP_LOG)
        return
    from worker.platform.agent import denial_reasons

    try:
        reasons = denial_reasons(
            agent_client,
            app_name=app_name,
            agent=agent,
            resources=ray_actor_options,
            replicas=initial_replicas(serve_options),
        )
    except (ClientError, TimeoutError, ConnectionError, OSError) as error:
        raise capacity_unreachable_error(error) from clean_exception(error)
    if reasons is not None:
        raise CapacityDeniedError(reasons)


class CapacityDeniedError(RuntimeError):
    """The agent says that the cluster has no room (contract: the table of errors)."""

    def __init__(self, reasons: list[Any], explanation: str = "") -> None:
        """Say it with the reasons.

        Args:
            reasons: The agent's, fit to be shown.
            explanation: What follows the contract's sentence.
        """
        denied = _CAPACITY_DENIED_MSG.format(reasons=reasons)
        super().__init__(f"{denied}: {explanation}" if explanation else denied)
        self.reasons = reasons


class CapacityUnknownError(RuntimeError):
    """The agent cannot say whether the cluster has room (contract: the table of errors)."""


def capacity_unreachable_error(error: BaseException) -> CapacityUnknownError:
    """Make the gate's error for an agent that cannot be reached or looked up (contract: the table of errors).

    Args:
        error: What the client or the look-up raised.

    Returns:
        The error to raise.
    """
    return CapacityUnknownError(_CAPACITY_UNREACHABLE_MSG.format(error_type=error_type(error)))


class DeploymentProgressCategories:
    """Names of the steps of a deployment (seeds: deployment action; platform-api: the steps of `deploy`)."""

    INITIALIZE = "initialize"
    DEPLOY = "deploy"
    REGISTER = "register"


class BaseDeploymentAction(BaseAction[P]):
    """Deploys `entrypoint` on Ray Serve (seeds: deployment action). The `get_` methods can be overridden.

    Attributes:
        progress: Names of the steps.
        entrypoint: A `BaseServeDeployment`, any class, function or `serve.Deployment` that Serve can run, or
            a bound application.
    """

    progress: ClassVar[DeploymentProgressCategories] = DeploymentProgressCategories()
    entrypoint: Any = None
    base_params = DeployParams
    params_model = DeployParams
    _is_direct = False
    operations: ClassVar[Mapping[str, str]] = {
        "plan": "_plan_operation",
        "submit": "_submit_operation",
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

    @property
    def agent_client(self) -> Any:
        """The agent client of the context.

        Raises:
            RuntimeError: The context has none.
        """
        if self.ctx.agent_client is None:
            raise RuntimeError("the context has no agent client: give RuntimeContext(agent_client=...)")
        return self.ctx.agent_client

    def get_serve_app_name(self) -> str:
        """Name the Serve application.

        Returns:
            By default SYNAPSE_PLUGIN_RELEASE_CODE, the release `code@version`.

        Raises:
            RuntimeError: The setting is missing.
        """
        name = self.ctx.env.get("SYNAPSE_PLUGIN_RELEASE_CODE")
        if not name:
            raise RuntimeError("SYNAPSE_PLUGIN_RELEASE_CODE is not set: the application has no name")
        return name

    def get_route_prefix(self) -> str:
        """Choose the path under which Serve's proxy routes to the application.

        Returns:
            By default `/` and the release's checksum, or the MD5 of the application's name without one.
        """
        checksum = self.ctx.env.get("SYNAPSE_PLUGIN_RELEASE_CHECKSUM")
        if checksum:
            return f"/{checksum}"
        name = self.get_serve_app_name().encode()
        return f"/{hashlib.md5(name, usedforsecurity=False).hexdigest()}"

    def get_ray_actor_options(self) -> JsonObject:
        """Choose the resources of one replica.

        Returns:
            Options of a Ray actor: by default `num_cpus`, `num_gpus` and `memory` (bytes) of the parameters,
            else of config.yaml's `required_resources`; those that neither declares are left out.
        """
        declared = self._request.required_resources if self._request else {}
        found = {name: self._param(name, declared) for name in ("num_cpus", "num_gpus", "memory")}
        return {name: value for name, value in found.items() if value is not None}

    def get_serve_options(self) -> JsonObject:
        """Choose the options of the Serve deployment.

        Returns:
            By default the `serve_options` of config.yaml's action.
        """
        return dict(self._request.serve_options) if self._request else {}

    def get_runtime_env(self) -> JsonObject:
        """Choose additions to the replicas' runtime environment.

        Returns:
            A Ray runtime environment that is merged into the release's own; empty by default.
        """
        return {}

    def ray_init(self, **kwargs: Any) -> None:
        """Connect this process to the cluster of RAY_ADDRESS, unless it is connected.

        Args:
            **kwargs: Further arguments of `ray.init`; `address` takes precedence over RAY_ADDRESS.

        Raises:
            RuntimeError: No address is given.
        """
        from worker.actions.serve_submit import connect

        connect(self.ctx.env.get("RAY_ADDRESS") or os.environ.get("RAY_ADDRESS"), kwargs)

    def plan(self) -> JsonObject:
        """Plan the deployment without doing anything.

        Returns:
            What `submit` needs, as JSON: `app_name`, `route_prefix`, `ray_actor_options`, `serve_options`,
            `digest`, a hash over everything that makes one deployment differ from another, and of an
            entrypoint whose own code chooses options `defaults`, the names of those options of the run that
            give way to it, and `capacity`, what the gate has to ask for; of another `requests_at_once`.

        Raises:
            ServeOptionsError: The serve options have an unknown key, or the entrypoint cannot have them.
            TypeError: The entrypoint cannot be served.
        """
        declared = self._param("num_replicas", self._request.required_resources if self._request else {})
        serve_options = serve_submit.check_serve_options(self.get_serve_options(), declared)
        actor_options = self._actor_options(serve_options.pop("ray_actor_options", {}))
        plan: JsonObject = {
            "app_name": self.get_serve_app_name(),
            "route_prefix": self.get_route_prefix(),
            "ray_actor_options": actor_options,
            "serve_options": serve_options,
        }
        own_name = f"{type(self).__module__}.{type(self).__name__}"
        entrypoint = self._request.entrypoint if self._request else own_name
        facts = [
            plan,
            entrypoint,
            self._backend_url(),
            self.ctx.env.get("SYNAPSE_PLUGIN_RELEASE_CHECKSUM", ""),
        ]
        plan["digest"] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        target = self._target()
        if target is None:
            return plan
        if not serve_submit.has_own_options(target):
            plan["requests_at_once"] = requests_at_once(serve_options)
        else:
            plan["defaults"] = self._defaults(actor_options)
            url, arguments = self._backend_url(), self._builder_arguments()
            plan["capacity"] = serve_submit.needed_capacity(target, plan, url, arguments)
        return plan

    def submit(self, plan: Mapping[str, Any]) -> JsonObject:
        """Submit the application to Serve and return at once; a running one is updated in place.

        Args:
            plan: The value of `plan`.

        Returns:
            `{"submitted", "reason", "replaced", "messages"}`. When an identical application already runs,
            nothing is submitted and the reason is `identical`.

        Raises:
            RuntimeError: The action has no `entrypoint`.
            TypeError: The entrypoint cannot be served.
        """
        from worker.actions.serve_submit import submit

        runtime_env = self._request.runtime_env if self._request else {}
        url, arguments = self._backend_url(), self._builder_arguments()
        return submit(self._entrypoint(), plan, runtime_env, url, arguments, self.ctx.language)

    def deploy(self) -> None:
        """Pass the capacity gate, submit the application and wait until it runs.

        A direct call reads the config.yaml of the current folder, if there is one, and waits for
        WORKER_DEPLOY_TIMEOUT_SECONDS (contract: "Settings").

        Raises:
            RuntimeError: The gate denies it, or Serve cannot run it; the message has the reason.
            ReleaseInvalidError: config.yaml has mistakes.
        """
        from worker.actions.serve_submit import wait_until_running
        from worker.plugins.requests import folder_request
        from worker.settings import environment_setting

        self._entrypoint()
        seconds = environment_setting("worker_deploy_timeout_seconds")
        if self._request is None:
            entrypoint = f"{type(self).__module__}.{type(self).__name__}"
            self._request, self._is_direct = folder_request(entrypoint, self.ctx.env, Path.cwd()), True
            self.ctx.env.update(self._request.env if self._request else {})
        plan = self.plan()
        self.ray_init()
        self._check_serve_capacity(*gate_options(plan))
        outcome = self.submit(plan)
        for message in outcome["messages"]:
            self.ctx.log_message(message)
        remove_failed = not outcome["replaced"]
        wait_until_running(plan["app_name"], seconds, plan["digest"], remove_failed)

    def execute(self) -> JsonObject:
        """Run the whole action in this process, blocking: deploy and register.

        Returns:
            `{"serve_application": id}`, as in the job's result.

        Raises:
            RuntimeError: The deployment failed.
        """
        self.set_progress(1, 3, self.progress.INITIALIZE)
        self.deploy()
        self.set_progress(2, 3, self.progress.DEPLOY)
        application = self.register_serve_application()
        self.set_progress(3, 3, self.progress.REGISTER)
        return {"serve_application": application}

    def _check_serve_capacity(self, ray_actor_options: JsonObject, serve_options: JsonObject) -> None:
        if self._request is not None and not self._is_direct:
            return  # a whole run, for which the worker has asked
        check_serve_capacity(
            self.ctx.agent_client,
            app_name=self.get_serve_app_name(),
            agent=self.ctx.env.get("SYNAPSE_AGENT_ID"),
            ray_actor_options=ray_actor_options,
            serve_options=serve_options,
            logger=self.ctx.logger,
        )

    def register_serve_application(self) -> int | str | None:
        """Register the application in the backend (platform-api: `POST serve_applications/`).

        Returns:
            The id of the backend's record, an integer or a text; None for a run without a job.

        Raises:
            ClientError: The backend does not answer or rejects the record.
        """
        if not self.ctx.job_id:
            return None
        from worker.actions.serve_state import route_in_force, serve_details

        name = self.get_serve_app_name()
        state = serve_details().get(name) or {}
        data = {"name": name, "route_prefix": route_in_force(state) or self.get_route_prefix()}
        made = self.client.create_serve_application(
            job=self.ctx.job_id, status=state.get("status"), data=data
        )
        identifier = made.get("id") if isinstance(made, dict) else None
        return identifier if isinstance(identifier, int | str) else None

    def _entrypoint(self) -> Any:
        target = self._target()
        if target is None:
            raise RuntimeError(
                "entrypoint is not set: name the class to deploy (entrypoint = MyServeDeployment)"
            )
        return target

    def _target(self) -> Any:
        """The entrypoint: of the class, because a function would become a method, or a property's value."""
        is_property = isinstance(inspect.getattr_static(type(self), "entrypoint"), property)
        return self.entrypoint if is_property else type(self).entrypoint

    def _backend_url(self) -> str:
        return self.ctx.env.get("SYNAPSE_HOST", "")

    def _param(self, name: str, declared: Mapping[str, Any]) -> Any:
        """The run's parameter, else what config.yaml's `required_resources` declares."""
        value = getattr(self.params, name, None)
        if value is None:
            value = self.given.get(name)
        for key in RESOURCE_KEYS[name]:
            if value is None:
                value = declared.get(key)
        return value

    @staticmethod
    def _without_runtime_env(plan: Mapping[str, Any]) -> JsonObject:
        actor_options = {
            name: value for name, value in plan["ray_actor_options"].items() if name != "runtime_env"
        }
        return {**plan, "ray_actor_options": actor_options}

    def _actor_options(self, declared: Mapping[str, Any]) -> JsonObject:
        """The options of one replica: those of `serve_options`, but for what the run asks for."""
        chosen = self.get_ray_actor_options()
        given_way = set(self._defaults(chosen)) & set(declared)
        chosen = {name: value for name, value in chosen.items() if name not in given_way}
        options: JsonObject = {**declared, **chosen}
        runtime_env = self._own_runtime_env(options)
        return {**options, "runtime_env": runtime_env} if runtime_env else options

    def _defaults(self, actor_options: Mapping[str, Any]) -> list[str]:
        """Which of the options nobody has chosen: a dispatch has them for a release that declares none."""
        if type(self).get_ray_actor_options is not BaseDeploymentAction.get_ray_actor_options:
            return []
        declared = self._request.required_resources if self._request else {}
        return [
            name
            for name, default in DISPATCH_DEFAULTS.items()
            if actor_options.get(name) == default and not declared.keys() & set(RESOURCE_KEYS[name])
        ]

    def _builder_arguments(self) -> JsonObject:
        """What a function that builds an application gets: the action's own parameters."""
        given: Any = self.params
        values = given.model_dump(exclude_none=True) if isinstance(given, BaseModel) else self.given
        return {name: value for name, value in values.items() if name not in DeployParams.model_fields}

    def _own_runtime_env(self, actor_options: Mapping[str, Any]) -> JsonObject:
        return {**(actor_options.get("runtime_env") or {}), **self.get_runtime_env()}

    def _plan_operation(self, payload: Any) -> JsonObject:
        whole_run = self._whole_run(payload, ActionKind.DEPLOYMENT)
        # A plan is stored in Redis until it is submitted, and an environment may hold the release's secrets.
        return {**self._without_runtime_env(self.plan()), **whole_run}

    def _submit_operation(self, plan: Mapping[str, Any]) -> JsonObject:
        actor_options = {**plan["ray_actor_options"]}
        runtime_env = self._own_runtime_env(self.get_ray_actor_options())
        if runtime_env:
            actor_options["runtime_env"] = runtime_env
        return self.submit({**plan, "ray_actor_options": actor_options})

    def _check_params_operation(self, payload: Any) -> JsonObject:
        return self._answer_params(ActionKind.DEPLOYMENT, payload)


def action_for(target: Any) -> type[BaseDeploymentAction[Any]]:
    """Make a deployment action for an entrypoint of config.yaml that is not an action.

    Args:
        target: A class, function, deployment or application that Serve can run.

    Returns:
        A subclass of `BaseDeploymentAction` whose `entrypoint` is the target.
    """
    entrypoint = staticmethod(target) if inspect.isfunction(target) else target
    name = getattr(target, "__name__", type(target).__name__)
    return type(f"Deploy{name}", (BaseDeploymentAction,), {"entrypoint": entrypoint})
