"""The base of every action: parameters that are checked, and operations that a host may call."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from worker.actions.context import RuntimeContext

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
            mistakes += [_mistake(item) for item in error.errors()]
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


def _mistake(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
