"""A deployment action with a parameter of its own, and its operations as a host calls them."""

from typing import Any

from shared.messages import DeployParams
from worker.actions import BaseDeploymentAction, BaseServeDeployment
from worker.plugins import ActionRequest

ENV = {
    "SYNAPSE_PLUGIN_RELEASE_CODE": "cat@1.0",
    "SYNAPSE_PLUGIN_RELEASE_CHECKSUM": "abc",
    "SYNAPSE_HOST": "http://b",
}


class Params(DeployParams):
    threshold: float = 0.5


class Deploy(BaseDeploymentAction[Params]):
    entrypoint = BaseServeDeployment


def run(operation: str, payload: Any = None, **fields: Any) -> Any:
    """Call an operation of the action."""
    request = ActionRequest("cat@1.0", "deployment", "plugin.d.Deploy", env=ENV, **fields)
    return Deploy.run_operation(request, operation, payload)
