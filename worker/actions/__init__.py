"""The classes that plugin authors subclass (contract: "Plugins"; seeds: both actions' documents)."""

from worker.actions.base import BaseAction, RuntimeContext
from worker.actions.deployment import BaseDeploymentAction, DeploymentProgressCategories
from worker.actions.serve import BaseServeDeployment
from worker.actions.to_task import ToTaskAction, ToTaskMethod, ToTaskParams, ToTaskResult

__all__ = [  # noqa: RUF022 - grouped by topic
    # deploy a model
    "BaseDeploymentAction",
    "DeploymentProgressCategories",
    "BaseServeDeployment",
    # pre-annotate tasks
    "ToTaskAction",
    "ToTaskParams",
    "ToTaskMethod",
    "ToTaskResult",
    # both
    "BaseAction",
    "RuntimeContext",
]
