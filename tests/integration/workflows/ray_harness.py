"""A sandbox with a real Ray: its applications, and messages that deploy to it and call them."""

import json
import textwrap
from pathlib import Path
from typing import Any

import httpx
from typer.testing import CliRunner

from shared import DeployMessage
from tests.harness.sandbox_harness import Row, SandboxHarness
from worker.cli.main import app
from worker.sandbox import Process, Sandbox
from worker.sandbox.sandbox import AGENT_ID
from worker.sandbox.seed import SeededProject

EXAMPLES = Path(__file__).parents[3] / "examples" / "plugins"
NEW_RELEASES: dict[str, list[str]] = {"plain": [], "routed": ["--fastapi"]}
"""Codes of releases of `plugin new`, with its options."""
CONCURRENCY = 8
"""Threads of the worker of the session."""
HANG_SECONDS = 120

HANGING_ACTIONS = """
    import pathlib, time, uuid
    from worker.actions import BaseDeploymentAction, BaseServeDeployment, ToTaskAction, ToTaskParams

    def hang(what):
        pathlib.Path({calls!r}, what + "-" + uuid.uuid4().hex).touch()
        time.sleep({seconds})

    {at_load}

    class Served(BaseServeDeployment):
        async def infer(self, data):
            return data

    class Deployment(BaseDeploymentAction):
        entrypoint = Served

        def plan(self):
            hang("plan")

    class Params(ToTaskParams):
        threshold: float = 0.5  # with parameters of its own the release is asked by each run

    class ToTask(ToTaskAction):
        params_model = Params

        def convert_data_from_file(self, *args, **kwargs):
            hang("convert")
"""


DECORATED_ACTIONS = """
    from fastapi import FastAPI
    from ray import serve
    from worker.actions import BaseDeploymentAction, BaseServeDeployment, ToTaskAction

    app = FastAPI()

    @serve.deployment
    @serve.ingress(app)
    class Served(BaseServeDeployment):
        @app.post("/")
        async def root(self, body: dict):
            return await self.handle_inference(body=body)

        async def infer(self, data):
            return {"said": data["text"], "backend": self.backend_url}

    class Deployment(BaseDeploymentAction):
        @property
        def entrypoint(self):
            return Served

        def get_route_prefix(self):
            self.log_message({"en": "chooses a route", "ko": "경로"})
            self.log_metric("plan", "routes", 1, depth=2)
            self.set_progress(1, 4, "choose")
            self.set_metrics({"routes": 1}, "choose")
            self.logger.warning("a warning of the logger's")
            return "/decorated"

    class ToTask(ToTaskAction):
        def convert_data_from_file(self, *files, task_data=None):
            self.log_message("reads {file}", "warning", file=files[3])
            return {"label": files[3]}
"""


WHOLE_ACTIONS = """
    import os, time
    from worker.actions import BaseDeploymentAction, BaseServeDeployment, ToTaskAction

    class Served(BaseServeDeployment):
        async def infer(self, data):
            return {"heard": data["text"]}

    class Deployment(BaseDeploymentAction):
        entrypoint = Served

        def execute(self):
            self.deploy()
            return {"deployed": self.get_serve_app_name(), "by": self.ctx.job_id}

    class ToTask(ToTaskAction):
        def execute(self):
            what = self.params.description
            self.log_message("does {what} its own way", what=what)
            self.set_progress(1, 2, "own")
            self.set_metrics({"files": 3}, "own")
            if what == "fail":
                raise ValueError("this cannot be done")
            if what == "sleep":
                time.sleep(600)
            if what == "exit":
                os._exit(0)
            secrets = [value for name, value in os.environ.items() if "TOKEN" in name and "RAY" not in name]
            return {"did": what, "greeting": self.ctx.env["GREETING"], "secrets": secrets}
"""


def write_whole_release(store: Path) -> None:
    """`whole@1.0.0`: actions with an `execute` of their own; `description` says what `to_task` does."""
    write_release(store, "whole", textwrap.dedent(WHOLE_ACTIONS), env={"GREETING": "hello"})


def write_decorated_release(store: Path) -> None:
    """`decorated@1.0.0`: FastAPI in the form of Ray's documentation, and actions that say what they do."""
    write_release(store, "decorated", textwrap.dedent(DECORATED_ACTIONS))


def write_new_releases(store: Path) -> None:
    """What `plugin new` makes of each template."""
    for code, options in NEW_RELEASES.items():
        made = CliRunner().invoke(app, ["plugin", "new", code, *options, "--plugins-dir", str(store)])
        assert made.exit_code == 0, made.output


def write_hanging_release(store: Path, calls: Path, code: str, at_load: str = "") -> None:
    """A release that hangs in every call; each that begins leaves a file in `calls`."""
    text = textwrap.dedent(HANGING_ACTIONS)
    write_release(store, code, text.format(calls=str(calls), seconds=HANG_SECONDS, at_load=at_load))


def write_release(store: Path, code: str, text: str, **config: Any) -> None:
    """`{code}@1.0.0`, with all actions, or a deployment of the class Served alone."""
    package = store / f"{code}@1.0.0" / "plugin"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()
    (package / "actions.py").write_text(text)
    entrypoints = {"to_task": "ToTask", "deployment": "Deployment", "inference": "Served"}
    if "class Deployment" not in text:
        entrypoints = {"deployment": "Served"}
    actions = {name: {"entrypoint": f"plugin.actions.{entry}"} for name, entry in entrypoints.items()}
    config |= {"code": code, "version": "1.0.0", "actions": actions}
    (package.parent / "config.yaml").write_text(json.dumps(config))


class RayHarness(SandboxHarness):
    """A sandbox with Ray, and its worker. Calls of hanging releases leave files in the folder `calls`."""

    def __init__(self, sandbox: Sandbox, worker: Process, calls: Path | None = None) -> None:
        self.sandbox = sandbox
        self.worker = worker
        self.calls = calls
        self.connect()
        assert sandbox.ray is not None
        self.serve_url = sandbox.ray.serve_url

    # when

    def deploy(self, plugin: str, **params: Any) -> str:
        """Publish a `deploy` message for a new job; returns the job."""
        job = self.new_job(plugin=plugin, action="deployment")
        fields = {"job": job, "plugin": plugin, "agent": AGENT_ID, "params": params}
        self.publish(DeployMessage.model_validate(fields))
        return job

    def to_task_by_file(self, project: SeededProject, plugin: str = "echo@1.0.0") -> str:
        return self.to_task(project, plugin, method="file", target_specification_name="label_1")

    def to_task_by_inference(
        self, project: SeededProject, pre_processor: int, plugin: str = "echo@1.0.0"
    ) -> str:
        return self.to_task(project, plugin, method="inference", pre_processor=pre_processor, model=1)

    def delete_application(self, name: str) -> None:
        headers = {"Authorization": self.sandbox.agent_token}
        httpx.delete(f"{self.sandbox.agent_url}/serve_applications/{name}/", headers=headers, timeout=120)
        self.wait_for(lambda: name not in self.serve_applications(), f"end of {name}")

    # then

    def count_hanging(self, what: str) -> int:
        """How many calls of hanging releases have begun."""
        assert self.calls is not None
        return len(list(self.calls.glob(f"{what}-*")))

    def annotated_tasks(self, project: SeededProject) -> list[Row]:
        tasks = self.state.rows("SELECT * FROM tasks WHERE project = ? ORDER BY id", project.id)
        return [task for task in tasks if task["data"] is not None]

    def requests(self, method: str, path: str) -> list[Row]:
        """The requests that the backend received."""
        return self.state.rows("SELECT * FROM requests WHERE method = ? AND path = ?", method, path)

    def dispatch_count(self, code: str) -> int:
        """How many deployments of a plugin the backend was asked for."""
        query = "SELECT count(*) FROM jobs WHERE plugin LIKE ? AND action = 'deployment' AND agent = ?"
        return int(self.state.value(query, f"{code}@%", AGENT_ID))

    def application_records(self, job: str) -> list[Row]:
        """The backend's records of the applications that a job has deployed."""
        return self.state.rows("SELECT * FROM serve_applications WHERE job = ?", int(job))

    def serve_applications(self) -> dict[str, Any]:
        """The applications on Ray Serve by name, from the agent."""
        assert self.sandbox.agent_url is not None
        headers = {"Authorization": self.sandbox.agent_token}
        body = httpx.get(f"{self.sandbox.agent_url}/serve_applications/", headers=headers).json()
        return {app["name"]: app for app in (body["results"] if isinstance(body, dict) else body)}

    def application_url(self, name: str) -> str:
        """Where Serve's proxy has an application."""
        return f"{self.serve_url}{self.serve_applications()[name]['route_prefix']}"

    def call_application(self, name: str, body: Row) -> Any:
        """POST `body` to an application on Ray Serve; returns its JSON response."""
        return httpx.post(f"{self.application_url(name)}/", json=body, timeout=30).json()


def replicas(harness: RayHarness, name: str) -> set[str]:
    """The ids of an application's replicas."""
    ray = harness.sandbox.ray
    assert ray is not None
    headers = {"Authorization": f"Bearer {ray.environment()['RAY_AUTH_TOKEN']}"}
    answer = httpx.get(f"{ray.dashboard_url}/api/serve/applications/", headers=headers, timeout=10)
    deployments = answer.json()["applications"][name]["deployments"].values()
    return {replica["replica_id"] for deployment in deployments for replica in deployment["replicas"]}
