"""An entrypoint that is no action, such as a Serve class, a function or an application, as one."""

import inspect
from typing import Any

from worker.actions.deployment import BaseDeploymentAction


def action_for(target: Any) -> type[BaseDeploymentAction[Any]]:
    """A deployment action whose entrypoint is `target`."""
    entrypoint = staticmethod(target) if inspect.isfunction(target) else target
    name = getattr(target, "__name__", type(target).__name__)
    return type(f"Deploy{name}", (BaseDeploymentAction,), {"entrypoint": entrypoint})
