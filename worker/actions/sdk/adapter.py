"""Which action of ours stands for an entrypoint, and what it asks of an author's action of the SDK.

The SDK's classes are known by their names in the class's ancestry, so the worker needs no SDK.
"""

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from shared.messages import JsonObject
from worker.actions import deployment
from worker.actions.base import BaseAction
from worker.actions.deployment import BaseDeploymentAction
from worker.actions.overrides import GETTERS, ActionKind, overrides
from worker.actions.sdk.author import SdkAction
from worker.actions.to_task import ToTaskAction

if TYPE_CHECKING:
    from worker.plugins.requests import ActionRequest

TO_TASK: Final = "synapse_sdk.plugins.actions.to_task.action.ToTaskAction"
DEPLOYMENT: Final = "synapse_sdk.plugins.actions.inference.deployment.BaseDeploymentAction"
ANY_ACTION: Final = "synapse_sdk.plugins.action.BaseAction"


def action_for(target: Any) -> type[BaseAction[Any]]:
    """Make an action for an entrypoint of config.yaml that is no action of ours.

    Args:
        target: An action of the published SDK, or anything that Serve can run.

    Returns:
        A subclass of `ToTaskAction` or of `BaseDeploymentAction`.
    """
    made = _sdk_action_for(target) if inspect.isclass(target) else None
    return made or deployment.action_for(target)


def _sdk_action_for(author: type[Any]) -> "type[SdkAction] | None":
    names = {f"{base.__module__}.{base.__qualname__}" for base in author.__mro__}
    if TO_TASK in names:
        return type(author.__name__, (SdkToTaskAction,), {"author": author})
    if DEPLOYMENT in names:
        own = overrides(author)
        getters: dict[str, Any] = {name: _author_getter(name) for name in GETTERS if name in own}
        return type(author.__name__, (SdkDeploymentAction,), {"author": author, **getters})
    if ANY_ACTION in names:
        return type(author.__name__, (SdkOtherAction,), {"author": author})
    return None


def _author_getter(name: str) -> Any:
    def getter(self: "SdkAction") -> Any:
        return getattr(self.action, name)()

    return getter


class SdkToTaskAction(SdkAction, ToTaskAction[Any]):
    """The hooks of an author's `ToTaskAction`, called as the SDK calls them."""

    kind = ActionKind.TO_TASK

    def __init__(self, request: "ActionRequest") -> None:
        """See `SdkAction`; hooks read `self.context`.

        Args:
            request: What the host received from the worker.
        """
        super().__init__(request)
        self.action.context = self.action.create_context()

    def convert_data_from_file(self, *args: Any, **kwargs: Any) -> JsonObject:
        """Call the author's hook.

        Args:
            *args: The four files' URLs and names.
            **kwargs: `task_data`.

        Returns:
            The data to write to the task.
        """
        data: JsonObject = self.action.convert_data_from_file(*args, **kwargs)
        return data

    def convert_data_from_inference(self, *args: Any, **kwargs: Any) -> JsonObject:
        """Call the author's hook.

        Args:
            *args: The pre-processor's answer.
            **kwargs: `task_data`.

        Returns:
            The data to write to the task.
        """
        data: JsonObject = self.action.convert_data_from_inference(*args, **kwargs)
        return data

    def setup_inference_params(self, *args: Any, **kwargs: Any) -> JsonObject:
        """Call the author's hook.

        Args:
            *args: The primary file's URL and name, and the other files.
            **kwargs: The other arguments of the hook.

        Returns:
            The `params` of the inference call.
        """
        config = kwargs.get("pre_processor_config")
        if self.action.context.inference is None and isinstance(config, Mapping):
            known = {"code": config.get("code"), "version": config.get("version"), "config": config}
            self.action.context.inference = known
        call: JsonObject = self.action.setup_inference_params(*args, **kwargs)
        return call


class SdkDeploymentAction(SdkAction, BaseDeploymentAction[Any]):
    """An author's entrypoint, parameters and `get_` methods; everything else is the worker's own steps."""

    kind = ActionKind.DEPLOYMENT

    def _target(self) -> Any:
        return self.action.entrypoint

    def _backend_url(self) -> str:
        return self.ctx.env.get("SYNAPSE_PLUGIN_RUN_HOST") or super()._backend_url()


class SdkOtherAction(SdkAction):
    """An author's action for which the worker has no steps, such as training: it always runs whole."""

    kind = ActionKind.OTHER
    operations: ClassVar[Mapping[str, str]] = {
        "plan": "_check_params_operation",
        "check_params": "_check_params_operation",
    }

    def _whole_run(self, payload: Any, kind: ActionKind) -> JsonObject:
        action = self._request.action if self._request else ""
        if action in (ActionKind.TO_TASK, ActionKind.DEPLOYMENT):
            raise TypeError(f"{self.author.__name__} is of another kind than the action {action!r} needs")
        return super()._whole_run(payload, kind)
