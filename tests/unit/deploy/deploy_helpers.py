"""A deployment's neighbours in memory: backend, agent, plugin host, Serve."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fakeredis import FakeRedis

from shared.messages import DeployMessage
from shared.statuses import JobStatus
from tests.unit.runs.runs_helpers import RecordingSender
from worker.deploy.cluster import ServeState
from worker.deploy.plan import DEPLOY, DeployPlan, DeployRun
from worker.runs.keys import lock_key, messages_key
from worker.runs.model import End, Outcome, Run, WorkflowStep
from worker.runs.runs import Runs, Timing
from worker.settings import Settings
from worker.workflow.task import user_message

APP = "digits@1.0.0"
PLAN = {
    "app_name": APP,
    "route_prefix": "/abc",
    "ray_actor_options": {"num_cpus": 2},
    "serve_options": {"num_replicas": 3},
    "digest": "d1",
}
STORED_PLAN = DeployPlan.from_json(PLAN)
RUNNING = ServeState(True, "running", "RUNNING", "", frozenset({"d1"}))
DEPLOYING = ServeState(True, "pending", "DEPLOYING", "", frozenset({"d1"}))
FAILED = ServeState(True, "failed", "DEPLOY_FAILED", "ValueError: no weights", frozenset({"d1"}))


class FakeCluster:
    """Serve: `here` is what it holds, an exception in `broken` is raised instead."""

    def __init__(self) -> None:
        self.here = ServeState()
        self.removed: list[str] = []
        self.broken: Exception | None = None

    def state(self, app_name: str) -> ServeState:
        if self.broken:
            raise self.broken
        return self.here

    def remove(self, app_name: str) -> None:
        self.removed.append(app_name)
        self.here = ServeState()


class FakeHost:
    """The plugin host; `submit` puts the application on the cluster."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.calls: list[str] = []
        self.broken: dict[str, Exception] = {}
        self.messages: list[str] = []
        self._cluster = cluster

    def call(self, release: object, request: object, operation: str, payload: Any) -> Any:
        self.calls.append(operation)
        if operation in self.broken:
            raise self.broken[operation]
        if operation == "plan":
            return PLAN
        assert payload == PLAN
        self._cluster.here = DEPLOYING
        return {"submitted": True, "reason": None, "replaced": False, "messages": self.messages}


class FakeAgent:
    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer: Any = {"allowed": True, "reasons": []}

    def check_feasibility(self, **asked: Any) -> Any:
        self.asked.append(asked)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class FakeBackend:
    """Records of applications; `lost` is raised by a post after it was done, `refused` before."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.lost: Exception | None = None
        self.refused: Exception | None = None

    def create_serve_application(self, **fields: Any) -> dict[str, Any]:
        if self.refused:
            raise self.refused
        self.records.append({"id": 900 + len(self.records), **fields})
        if self.lost:
            error, self.lost = self.lost, None
            raise error
        return self.records[-1]

    def list_serve_applications(self, **query: Any) -> dict[str, Any]:
        return {"results": list(self.records)}


@dataclass
class FakeServices:
    redis: FakeRedis
    runs: Runs
    settings: Settings
    host: FakeHost
    api: FakeBackend = field(default_factory=FakeBackend)
    the_agent: Any = field(default_factory=FakeAgent)

    def backend(self, tenant: str | None = None) -> FakeBackend:
        return self.api

    def agent(self, agent: int, tenant: str | None = None) -> Any:
        if isinstance(self.the_agent, Exception):
            raise self.the_agent
        return self.the_agent

    def action_of(self, run: Run) -> tuple[str, str]:
        return "release", "request"


class Yard:
    """Workers that deploy."""

    def __init__(self, redis: FakeRedis, sender: RecordingSender, plugins: Path, **settings: Any) -> None:
        given = {
            "synapse_host": "http://backend",
            "synapse_access_token": "token-of-the-worker",
            "plugins_dir": plugins,
            "ray_address": "127.0.0.1:6380",
            **settings,
        }
        self.cluster = FakeCluster()
        runs = Runs(redis, sender, Timing(60.0))
        self.services = FakeServices(redis, runs, Settings(**given), FakeHost(self.cluster))
        self.runs, self.sender = runs, sender
        self.host, self.api = self.services.host, self.services.api

    def accept(self, job: str = "42", **fields: Any) -> None:
        message = {"job": job, "plugin": APP, "agent": 1, **fields}
        self.runs.store.accept(DeployMessage.model_validate(message), "deploy")

    def step(
        self, step: WorkflowStep[Any, Any], function: Callable[..., Outcome], job: str = "42"
    ) -> Outcome:
        """What a worker does with the step's message: its outcome; what it raises ends the run."""
        token = self.runs.locks.new_token()
        generation = self.runs.generations.newest(job, step.name)
        begun = self.runs.store.claim_step(job, step, "", token, 30.0, generation, False)
        assert begun.run is not None, begun.status
        try:
            return function(step.workflow.typed(begun.run))
        except RuntimeError as error:
            self.runs.finish(job, End(JobStatus.FAILED, {"error": user_message(error)}))
            raise
        finally:
            self.services.redis.delete(lock_key(job, step.name))

    def told(self, job: str = "42") -> str:
        """What users read."""
        return "\n".join(self.services.redis.lrange(messages_key(job), 0, -1))

    def run(self, job: str = "42") -> DeployRun:
        return DEPLOY.typed(self.runs.store.load(job))

    def update_state(self, job: str = "42", **values: Any) -> None:
        """What earlier steps have found out."""
        run = self.run(job)
        self.runs.store.update_state(run, replace(run.state, **values))
