"""The steps of a deployment, in their order."""

from worker.runs.model import Step

INITIALIZE = Step("deploy.initialize", position=10)
CAPACITY_GATE = Step("deploy.capacity_gate", position=20)
SERVE_RUN = Step("deploy.serve_run", position=30)
AWAIT_RUNNING = Step("deploy.await_running", position=40)
REGISTER = Step("deploy.register", position=50)

PROGRESS = "deploy"
"""The platform's progress step that gate, submission and wait belong to."""
