"""The message of a deployment's run."""

from shared.messages import DeployMessage
from worker.runs.model import Run


def deploy_message(run: Run) -> DeployMessage:
    """The run's message, which is a deployment's."""
    if not isinstance(run.message, DeployMessage):
        raise TypeError(f"{run.message.task} is no deployment")
    return run.message
