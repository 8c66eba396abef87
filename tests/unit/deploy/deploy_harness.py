"""Runs that deploy, on fakes of what a deployment depends on: backend, agent, plugin host, Ray Serve."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fakeredis import FakeRedis

from shared.messages import DeployMessage
from tests.harness.in_process_worker import InProcessWorker, RecordingPublisher
from worker.deploy.cluster import ServeState
from worker.deploy.plan import DEPLOY, DeployPlan, DeployRun
from worker.runs.keys import messages_key
from worker.runs.model import Outcome, WorkflowStep
from worker.runs.runs import Runs, Timing
from worker.settings import Settings
from worker.testing import FakeAgent, FakeBackend, FakePluginHost

APP = "digits@1.0.0"
PLAN = DeployPlan.from_json(FakePluginHost().plan)
RUNNING = ServeState(True, "running", "RUNNING", "", frozenset({"d1"}))
DEPLOYING = ServeState(True, "pending", "DEPLOYING", "", frozenset({"d1"}))
FAILED = ServeState(True, "failed", "DEPLOY_FAILED", "ValueError: no weights", frozenset({"d1"}))


@dataclass
class FakeServices:
    """What the steps find in a process; an exception as `agent_client` is raised by its lookup."""

    redis: FakeRedis
    runs: Runs
    settings: Settings
    host: FakePluginHost = field(default_factory=FakePluginHost)
    backend_client: FakeBackend = field(default_factory=FakeBackend)
    agent_client: FakeAgent | Exception | None = field(default_factory=FakeAgent)
    checksum: str = "c1"
    """Of the release in the plugin store."""

    def checksum_of(self, plugin: str) -> str:
        return self.checksum

    def backend(self, tenant: str | None = None) -> FakeBackend:
        return self.backend_client

    def agent(self, agent: int, tenant: str | None = None) -> FakeAgent | None:
        if isinstance(self.agent_client, Exception):
            raise self.agent_client
        return self.agent_client

    def action_of(self, run: DeployRun) -> tuple[str, str]:
        return "release", "request"


class DeployHarness:
    """A worker's steps of deployments, without Celery."""

    def __init__(self, redis: FakeRedis, sender: RecordingPublisher, plugins: Path, **settings: Any) -> None:
        given = {
            "synapse_host": "http://backend",
            "synapse_access_token": "token-of-the-worker",
            "plugins_dir": plugins,
            "ray_address": "127.0.0.1:6380",
            **settings,
        }
        self.services = FakeServices(redis, Runs(redis, sender, Timing(60.0)), Settings(**given))
        self.runs = self.services.runs
        self.worker = InProcessWorker(self.runs)
        self.host, self.backend = self.services.host, self.services.backend_client
        self.serve = self.host.serve

    @property
    def agent(self) -> FakeAgent:
        assert isinstance(self.services.agent_client, FakeAgent)
        return self.services.agent_client

    def accept(self, job: str = "42", **fields: Any) -> None:
        message = {"job": job, "plugin": APP, "agent": 1, **fields}
        self.runs.store.accept(DeployMessage.model_validate(message), "deploy")

    def step(
        self, step: WorkflowStep[Any, Any], function: Callable[..., Outcome], job: str = "42"
    ) -> Outcome:
        """The outcome of a step's message that the engine delivers, or the error of its function."""
        return self.worker.outcome_of(step, function, job=job)

    def messages(self, job: str = "42") -> str:
        """What the run has written for its user."""
        return "\n".join(self.services.redis.lrange(messages_key(job), 0, -1))

    def run(self, job: str = "42") -> DeployRun:
        return DEPLOY.typed(self.runs.store.load(job))

    def update_state(self, job: str = "42", **values: Any) -> None:
        """An earlier step has stored `values` in the run's state."""
        run = self.run(job)
        self.runs.store.update_state(run, replace(run.state, **values))
