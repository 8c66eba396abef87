"""The base of every action: its context, its checked parameters, its operations."""

import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, get_args, get_origin

from pydantic import BaseModel, ValidationError
from typing_extensions import TypeVar

from shared.messages import JsonObject
from shared.validation import describe_validation_error

if TYPE_CHECKING:
    from worker.plugins.requests import ActionRequest, ClientAccess

logger = logging.getLogger("synapse.plugin")


class PluginEnvironment(dict[str, str]):
    """The run's settings by name; it is not the process's environment (contract: "Plugins")."""

    def get_str(self, name: str, default: str = "") -> str:
        """Look a setting up.

        Args:
            name: The setting's name, for example `SYNAPSE_HOST`.
            default: What to return when it is not set.

        Returns:
            The setting's value as text.
        """
        return self.get(name, default)


class RuntimeContext:
    """What an action gets from its run.

    Attributes:
        env: The run's settings.
        job_id: The backend's id of the job; None in a plain process.
        client: A `BackendClient` with the plugin's own token; None without WORKER_PLUGIN_ACCESS_TOKEN.
        agent_client: An `AgentClient` with the same token; None without one or without an agent's URL.
        logger: A logger of the standard library.
        language: The language for messages to users, such as `en`.
    """

    def __init__(
        self,
        env: Mapping[str, str] | None = None,
        job_id: str | None = None,
        client: Any = None,
        agent_client: Any = None,
        logger: Any = logger,
        language: str = "en",
    ) -> None:
        """Make a context, for example for a test.

        Args:
            env: The run's settings; none by default.
            job_id: The backend's id of the job.
            client: A client of the backend, or a fake of it.
            agent_client: A client of the agent, or a fake of it.
            logger: A logger; by default the one named `synapse.plugin`.
            language: The language for messages to users.
        """
        self.env = PluginEnvironment(env or {})
        self.job_id = job_id
        self.client = client
        self.agent_client = agent_client
        self.logger = logger
        self.language = language

    @classmethod
    def from_request(cls, request: "ActionRequest") -> "RuntimeContext":
        """Make the context of a run that the worker started.

        Args:
            request: What the host received from the worker.

        Returns:
            A context whose clients use the plugin's own token.
        """
        client, agent_client = _plugin_clients(request.clients)
        return cls(request.env, request.job, client, agent_client, language=request.language)

    @classmethod
    def from_environ(cls) -> "RuntimeContext":
        """Make a context from the process's environment, to try an action out in a plain process.

        The clients use SYNAPSE_ACCESS_TOKEN, because a direct run also does the worker's steps, which write.

        Returns:
            A context whose `env` holds the variables SYNAPSE_* and RAY_ADDRESS.
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
        """Log the action's progress.

        Args:
            current: How many units are done.
            total: How many units there are.
            step: The step that the units belong to.
        """
        self.logger.info("progress", extra={"current": current, "total": total, "step": step})

    def set_metrics(self, value: Mapping[str, float], step: str | None = None) -> None:
        """Log metrics.

        Args:
            value: Numbers by name.
            step: The step that they belong to.
        """
        self.logger.info("metrics", extra={"metrics": dict(value), "step": step})

    def log_message(self, text: str) -> None:
        """Log a message for users.

        Args:
            text: The message.
        """
        self.logger.info(text)


def _plugin_clients(access: "ClientAccess | None") -> tuple[Any, Any]:
    """Clients with the plugin's own token; plugin code never gets the agent's token."""
    if access is None or not access.token:
        return None, None
    from worker.platform import AgentClient, BackendClient

    client = BackendClient(access.host, access.token, tenant=access.tenant)
    if not access.agent_url:
        return client, None
    return client, AgentClient(access.agent_url, access.token, tenant=access.tenant)


P = TypeVar("P", bound=BaseModel, default=BaseModel)


class ParamsError(ValueError):
    """The parameters do not fit the action's model; the message names every mistake."""


class OperationError(ValueError):
    """The entrypoint has no such operation; config.yaml probably names the wrong class for this action."""


class BaseAction(Generic[P]):
    """An action of a plugin, with parameters of the model `P`.

    The model is the type argument (`BaseAction[MyParams]`) or `params_model`.

    Attributes:
        params: The checked parameters.
        given: The parameters as they were sent.
        ctx: The context of the run.
    """

    action_name: ClassVar[str | None] = None
    params_model: type[BaseModel]
    base_params: ClassVar[type[BaseModel] | None] = None
    """The model of the message's own parameters, which are accepted even if `params_model` lacks them."""
    operations: ClassVar[Mapping[str, str]] = {}
    """What a host may call: by name of the operation, the name of the method, which takes the payload."""

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
        """Make an action for one run.

        Args:
            params: The parameters, as the model or as a mapping that is checked against it.
            ctx: The context; by default `RuntimeContext.from_environ()`.

        Raises:
            ParamsError: The parameters do not fit the model.
        """
        self.given: JsonObject
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
        """The logger of the context."""
        return self.ctx.logger

    def set_progress(self, current: int, total: int, step: str | None = None) -> None:
        """Log the action's progress.

        Args:
            current: How many units are done.
            total: How many units there are.
            step: The step that the units belong to.
        """
        self.ctx.set_progress(current, total, step)

    @classmethod
    def check_params(cls, params: Mapping[str, Any]) -> BaseModel:
        """Check parameters against the action's model (contract: "`params` of `to_task`").

        Args:
            params: The message's parameters.

        Returns:
            An instance of `params_model`.

        Raises:
            ParamsError: A key is unknown to both models, or a value is wrong.
        """
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
        """Run an operation; the host calls this in its process.

        Args:
            request: The request of the run, with its parameters and settings.
            operation: A key of `operations`.
            payload: The operation's argument, any JSON value.

        Returns:
            The operation's value, which can be written as JSON.

        Raises:
            OperationError: The action has no such operation.
            ParamsError: The request's parameters do not fit the model.
        """
        method = cls.operations.get(operation)
        if method is None:
            raise OperationError(f"{cls.__name__} ({request.entrypoint}) cannot {operation}")
        action = cls(request.params, RuntimeContext.from_request(request))
        action._request = request
        return getattr(action, method)(payload)


def _keys(model: type[BaseModel]) -> set[str]:
    return {str(field.alias or name) for name, field in model.model_fields.items()}
