"""The base of every action: its checked parameters, its operations."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, get_args, get_origin

from pydantic import AliasChoices, AliasPath, BaseModel, ValidationError
from typing_extensions import TypeVar

from shared.messages import JsonObject
from shared.validation import describe_validation_error, unknown_parameters
from worker.actions.context import RuntimeContext
from worker.actions.overrides import ActionKind, whole_run_of

if TYPE_CHECKING:
    from worker.plugins.output import OutputCollector
    from worker.plugins.requests import ActionRequest

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

    def log(self, event: str, data: Mapping[str, Any], file: str | None = None, level: str = "info") -> None:
        """Log an event with data; see `RuntimeContext.log`.

        Args:
            event: The kind of event.
            data: What belongs to it.
            file: Path or URL of a file that belongs to it.
            level: The level's name.
        """
        self.ctx.log(event, data, file, level)

    def log_message(
        self, text: str | Mapping[str, str], level: str = "info", step: str | None = None, **values: Any
    ) -> None:
        """Log a message for users; see `RuntimeContext.log_message`.

        Args:
            text: The message, or messages by language.
            level: The level's name.
            step: The step that it belongs to.
            **values: What is put in for `{name}` in the message.
        """
        self.ctx.log_message(text, level, step, **values)

    def set_progress(self, current: int, total: int, step: str | None = None) -> None:
        """Report the action's progress.

        Args:
            current: How many units are done.
            total: How many units there are.
            step: The step that the units belong to.
        """
        self.ctx.set_progress(current, total, step)

    def set_metrics(self, value: Mapping[str, float], step: str | None = None) -> None:
        """Report the action's metrics.

        Args:
            value: Numbers by name.
            step: The step that they belong to.
        """
        self.ctx.set_metrics(value, step)

    def log_metric(self, category: str, key: str, value: float, **metrics: Any) -> None:
        """Log a value of a series; see `RuntimeContext.log_metric`.

        Args:
            category: Such as `train`.
            key: Such as `epoch`.
            value: The key's value.
            **metrics: What was measured there.
        """
        self.ctx.log_metric(category, key, value, **metrics)

    def log_visualization(self, category: str, group: str, index: int, image: str, **meta: Any) -> None:
        """Log that there is an image; see `RuntimeContext.log_visualization`.

        Args:
            category: Such as `validation`.
            group: Such as the epoch.
            index: The image's place in the group.
            image: Path or URL of the image.
            **meta: Whatever else belongs to it.
        """
        self.ctx.log_visualization(category, group, index, image, **meta)

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
        model, known = cls._params_model(), cls._known_params()
        unknown = unknown_parameters(params, known)
        mistakes = [unknown] if unknown else []
        try:
            checked = model.model_validate({key: params[key] for key in params if key in _keys(model)})
        except ValidationError as error:
            mistakes.append(describe_validation_error(error))
        if mistakes:
            raise ParamsError("; ".join(mistakes))
        return checked

    @classmethod
    def _params_model(cls) -> type[BaseModel]:
        model = getattr(cls, "params_model", None) or cls.base_params
        if model is None:
            raise ParamsError(f"{cls.__name__} declares no params_model")
        return model

    @classmethod
    def _known_params(cls) -> set[str]:
        return _keys(cls._params_model()) | (_keys(cls.base_params) if cls.base_params else set())

    def _whole_run(self, payload: Any, kind: ActionKind) -> JsonObject:
        return whole_run_of(kind, type(self), payload)

    @classmethod
    def _answer_params(cls, kind: ActionKind, payload: Any) -> JsonObject:
        """What `check_params` answers, once the constructor has checked the parameters.

        `keys` are there when the author adds none to the message's own, which the worker checks by itself.
        They are the same for all runs of the release, so that the host is asked once; how one runs whole
        is asked each time.
        """
        whole_run = whole_run_of(kind, cls, payload)
        if whole_run:
            return {"ok": True, **whole_run}
        own = cls._params_model() is not cls.base_params
        return {"ok": True} if own else {"ok": True, "keys": sorted(cls._known_params())}

    @classmethod
    def run_operation(
        cls,
        request: "ActionRequest",
        operation: str,
        payload: Any,
        output: "OutputCollector | None" = None,
    ) -> Any:
        """Run an operation; the host calls this in its process.

        Args:
            request: The request of the run, with its parameters and settings.
            operation: A key of `operations`.
            payload: The operation's argument, any JSON value.
            output: What collects the messages, progress and metrics of the call.

        Returns:
            The operation's value, which can be written as JSON.

        Raises:
            OperationError: The action has no such operation.
            ParamsError: The request's parameters do not fit the model.
        """
        method = cls.operations.get(operation)
        if method is None:
            raise OperationError(f"{cls.__name__} ({request.entrypoint}) cannot {operation}")
        return getattr(cls.from_request(request, output), method)(payload)

    @classmethod
    def from_request(cls, request: "ActionRequest", output: "OutputCollector | None" = None) -> Self:
        """Make the action of a run that the worker started.

        Args:
            request: What the host received from the worker.
            output: What collects the messages, progress and metrics of the call.

        Returns:
            An action with checked parameters, whose context has the plugin's own clients.

        Raises:
            ParamsError: The request's parameters do not fit the model.
        """
        action = cls(request.params, RuntimeContext.from_request(request, output))
        action._request = request
        return action


def _keys(model: type[BaseModel]) -> set[str]:
    """All names by which the model takes its fields from a message."""
    by_name = model.model_config.get("populate_by_name") or model.model_config.get("validate_by_name")
    keys = set()
    for name, field in model.model_fields.items():
        aliases = _alias_names(field.validation_alias or field.alias)
        keys |= aliases | ({name} if by_name or not aliases else set())
    return keys


def _alias_names(alias: str | AliasPath | AliasChoices | None) -> set[str]:
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias] if alias else []
    return {each if isinstance(each, str) else str(each.path[0]) for each in choices}
