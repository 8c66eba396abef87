"""The base of every action: what it is given, its checked parameters, its operations."""

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from shared.validation import describe_validation_error

if TYPE_CHECKING:
    from worker.plugins.requests import ActionRequest, ClientAccess

logger = logging.getLogger("synapse.plugin")


class PluginEnvironment(dict[str, str]):
    """The run's settings by name. Not the process's environment."""

    def get_str(self, name: str, default: str = "") -> str:
        """The setting, or `default` when it is not there."""
        return self.get(name, default)


class RuntimeContext:
    """`env`, clients and a logger. The clients are None without a token of the plugin's own."""

    def __init__(
        self,
        env: Mapping[str, str] | None = None,
        job_id: str | None = None,
        client: Any = None,
        agent_client: Any = None,
        logger: Any = logger,
        language: str = "en",
    ) -> None:
        self.env = PluginEnvironment(env or {})
        self.job_id = job_id
        self.client = client
        self.agent_client = agent_client
        self.logger = logger
        self.language = language

    @classmethod
    def from_request(cls, request: "ActionRequest") -> "RuntimeContext":
        """The context of a run that the worker started."""
        client, agent_client = _plugin_clients(request.clients)
        return cls(request.env, request.job, client, agent_client, language=request.language)

    @classmethod
    def from_environ(cls) -> "RuntimeContext":
        """For trying an action out in a plain process: the settings are the process's environment.

        The clients are the worker's own: what runs here does the worker's steps too, which write.
        """
        env = {
            name: value for name, value in os.environ.items() if name.startswith(("SYNAPSE_", "RAY_ADDRESS"))
        }
        host = env.get("SYNAPSE_HOST")
        token = env.get("SYNAPSE_ACCESS_TOKEN") or os.environ.get("WORKER_PLUGIN_ACCESS_TOKEN")
        if not host or not token:
            return cls(env)
        from worker.platform import AgentClient, BackendClient

        token, tenant = token.strip(), env.get("SYNAPSE_TENANT") or None
        client = BackendClient(host, token, tenant=tenant)
        if not env.get("SYNAPSE_AGENT_URL"):
            return cls(env, client=client)
        agent_token = env.get("SYNAPSE_AGENT_TOKEN", "").strip()
        agent = AgentClient(env["SYNAPSE_AGENT_URL"], agent_token, user_token=token, tenant=tenant)
        return cls(env, client=client, agent_client=agent)

    def set_progress(self, current: int, total: int, step: str | None = None) -> None:
        """Say how far the action is."""
        self.logger.info("progress", extra={"current": current, "total": total, "step": step})

    def set_metrics(self, value: Mapping[str, float], step: str | None = None) -> None:
        """Say how it is going, in numbers."""
        self.logger.info("metrics", extra={"metrics": dict(value), "step": step})

    def log_message(self, text: str) -> None:
        """Say something to whoever reads the log."""
        self.logger.info(text)


def _plugin_clients(access: "ClientAccess | None") -> tuple[Any, Any]:
    """Of a token that is the plugin's own; the agent's is not for plugin code."""
    if access is None or not access.token:
        return None, None
    from worker.platform import AgentClient, BackendClient

    client = BackendClient(access.host, access.token, tenant=access.tenant)
    if not access.agent_url:
        return client, None
    return client, AgentClient(access.agent_url, access.token, tenant=access.tenant)


if TYPE_CHECKING:
    from worker.plugins.requests import ActionRequest

P = TypeVar("P", bound=BaseModel)


class ParamsError(ValueError):
    """The parameters do not fit the action's model; the message has every mistake."""


class OperationError(ValueError):
    """The entrypoint has no such operation: config.yaml probably names the wrong class for this action."""


class BaseAction(Generic[P]):
    """An action of a plugin, with parameters of the model `P`.

    The model comes from the brackets (`BaseAction[MyParams]`) or from `params_model`.
    """

    action_name: ClassVar[str | None] = None
    params_model: type[BaseModel]
    base_params: ClassVar[type[BaseModel] | None] = None
    """The message's own parameters: always known, also to a model that does not declare them."""
    operations: ClassVar[Mapping[str, str]] = {}
    """What a host may call: name of the operation to name of the method, which takes the payload."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "params_model" in cls.__dict__:
            return
        for base in getattr(cls, "__orig_bases__", ()):
            origin, arguments = get_origin(base), get_args(base)
            if isinstance(origin, type) and issubclass(origin, BaseAction) and arguments:
                model = arguments[0]
                if isinstance(model, type) and issubclass(model, BaseModel):
                    cls.params_model = model

    def __init__(
        self, params: P | Mapping[str, Any] | None = None, ctx: RuntimeContext | None = None
    ) -> None:
        self.given: dict[str, Any]
        if isinstance(params, BaseModel):
            self.params: Any = params
            self.given = params.model_dump(exclude_unset=True, by_alias=True)
        else:
            self.given = dict(params or {})
            self.params = self.check_params(self.given)
        self.ctx = ctx if ctx is not None else RuntimeContext.from_environ()
        self._request: ActionRequest | None = None

    @property
    def logger(self) -> Any:
        """The context's logger."""
        return self.ctx.logger

    def set_progress(self, current: int, total: int, step: str | None = None) -> None:
        """Say how far the action is."""
        self.ctx.set_progress(current, total, step)

    @classmethod
    def check_params(cls, params: Mapping[str, Any]) -> BaseModel:
        """`params` as the action's model; `ParamsError` names unknown keys and wrong values."""
        model = getattr(cls, "params_model", None) or cls.base_params
        if model is None:
            raise ParamsError(f"{cls.__name__} declares no params_model")
        known = _keys(model) | (_keys(cls.base_params) if cls.base_params else set())
        unknown = ", ".join(repr(key) for key in sorted(set(params) - known))
        mistakes = [f"unknown parameter {unknown} (known: {', '.join(sorted(known))})"] if unknown else []
        try:
            checked = model.model_validate({key: params[key] for key in params if key in _keys(model)})
        except ValidationError as error:
            mistakes.append(describe_validation_error(error))
        if mistakes:
            raise ParamsError("; ".join(mistakes))
        return checked

    @classmethod
    def run_operation(cls, request: "ActionRequest", operation: str, payload: Any) -> Any:
        """Called by the host, in the host: one operation of the table, nothing else."""
        method = cls.operations.get(operation)
        if method is None:
            raise OperationError(f"{cls.__name__} ({request.entrypoint}) cannot {operation}")
        action = cls(request.params, RuntimeContext.from_request(request))
        action._request = request
        return getattr(action, method)(payload)


def _keys(model: type[BaseModel]) -> set[str]:
    return {str(field.alias or name) for name, field in model.model_fields.items()}
