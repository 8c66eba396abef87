"""An action of ours around an author's action of the published SDK, made for one run."""

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ValidationError

from shared.messages import JsonObject
from shared.validation import describe_validation_error
from worker.actions.base import BaseAction, ParamsError
from worker.actions.context import RuntimeContext
from worker.actions.overrides import ActionKind, whole_run_of
from worker.actions.sdk.context import make_context

if TYPE_CHECKING:
    from worker.plugins.output import OutputCollector
    from worker.plugins.requests import ActionRequest

MAX_ACTIONS = 8
"""Author's objects that are kept in a process, one for a run, as the SDK has it."""

_actions: "OrderedDict[tuple[type[Any], str], SdkAction]" = OrderedDict()
_making: WeakKeyDictionary[type[Any], threading.Lock] = WeakKeyDictionary()
"""By the author's class: a constructor that takes its time delays the runs of that class alone."""
_lock = threading.Lock()


class SdkAction(BaseAction[Any]):
    """An action that has an author's action of the SDK, made for one run.

    Attributes:
        author: The author's class.
        action: The author's object, which lives for a run, so that what it has loaded stays loaded.
    """

    author: ClassVar[type[Any]]
    kind: ClassVar[ActionKind]

    def __init__(self, request: "ActionRequest") -> None:
        """Make the author's object with the SDK's own context.

        Args:
            request: What the host received from the worker.

        Raises:
            ParamsError: The parameters do not fit the author's model.
        """
        self._request = request
        self.given = dict(request.params)
        self.ctx = RuntimeContext.from_request(request)
        self.sdk_ctx = make_context(request)
        self.params = self._checked_params()
        self.action = self.author(self.params, self.sdk_ctx)

    @classmethod
    def from_request(cls, request: "ActionRequest", output: "OutputCollector | None" = None) -> Self:
        """See `BaseAction.from_request`; a run's later calls get the object of its first one.

        Args:
            request: What the host received from the worker.
            output: What collects the messages, progress and metrics of the call.

        Returns:
            The action of the run.
        """
        key = cls.author, request.to_json()
        with _lock:
            making = _making.setdefault(cls.author, threading.Lock())
        with making:
            with _lock:
                action = _actions.pop(key, None)
            action = action or cls(request)
            with _lock:
                _actions[key] = action
                while len(_actions) > MAX_ACTIONS:
                    _actions.popitem(last=False)
        action.sdk_ctx.logger.output = action.ctx.output = output
        return cast(Self, action)

    def _checked_params(self) -> Any:
        """The author's model of the parameters, which ignores unknown keys unless it says otherwise."""
        model: type[BaseModel] | None = getattr(self.author, "params_model", None)
        if model is None:
            return dict(self.given)
        try:
            return model.model_validate(self.given, context={"client": self.sdk_ctx.client})
        except ValidationError as error:
            raise ParamsError(describe_validation_error(error)) from None

    def _check_params_operation(self, payload: Any) -> JsonObject:
        return {"ok": True, **self._whole_run(payload, self.kind)}

    def _whole_run(self, payload: Any, kind: ActionKind) -> JsonObject:
        return whole_run_of(kind, self.author, payload)
