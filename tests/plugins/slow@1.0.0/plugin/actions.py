"""Takes a minute to start."""

import time

from worker.actions import BaseDeploymentAction, BaseServeDeployment


class Slow(BaseServeDeployment):
    def __init__(self, backend_url):
        super().__init__(backend_url)
        time.sleep(60)


class Deployment(BaseDeploymentAction):
    entrypoint = Slow
