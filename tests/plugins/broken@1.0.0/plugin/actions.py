"""Cannot start."""

from worker.actions import BaseDeploymentAction, BaseServeDeployment


class Broken(BaseServeDeployment):
    def __init__(self, backend_url):
        super().__init__(backend_url)
        raise ValueError("the weights are missing")


class Deployment(BaseDeploymentAction):
    entrypoint = Broken
