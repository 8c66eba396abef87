"""The classes that plugin authors subclass (contract: "Plugins"; seeds: both actions' documents)."""

from worker.actions.base import BaseAction
from worker.actions.context import RuntimeContext
from worker.actions.deployment import BaseDeploymentAction, DeploymentProgressCategories
from worker.actions.models import create_serve_multiplexed_model_id
from worker.actions.serve import BaseServeDeployment
from worker.actions.to_task import ToTaskAction, ToTaskMethod, ToTaskParams, ToTaskResult

__all__ = [  # noqa: RUF022 - grouped by topic
    # deploy a model
    "BaseDeploymentAction",
    "DeploymentProgressCategories",
    "BaseServeDeployment",
    "create_serve_multiplexed_model_id",
    # pre-annotate tasks
    "ToTaskAction",
    "ToTaskParams",
    "ToTaskMethod",
    "ToTaskResult",
    # both
    "BaseAction",
    "RuntimeContext",
]
