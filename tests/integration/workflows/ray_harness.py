"""A sandbox with a real Ray: its applications, and messages that deploy to it and call them."""

from typing import Any

import httpx

from shared import DeployMessage
from tests.harness.sandbox_harness import Row, SandboxHarness
from worker.sandbox import Process, Sandbox
from worker.sandbox.sandbox import AGENT_ID
from worker.sandbox.seed import SeededProject


class RayHarness(SandboxHarness):
    """A sandbox with Ray, and its worker."""

    def __init__(self, sandbox: Sandbox, worker: Process) -> None:
        self.sandbox = sandbox
        self.worker = worker
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
        httpx.delete(f"{self.sandbox.agent_url}/serve_applications/{name}/", headers=headers, timeout=30)
        self.wait_for(lambda: name not in self.serve_applications(), f"end of {name}")

    # then

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

    def call_application(self, name: str, body: Row) -> Any:
        """POST `body` to an application on Ray Serve; returns its JSON response."""
        route = self.serve_applications()[name]["route_prefix"]
        return httpx.post(f"{self.serve_url}{route}/", json=body, timeout=30).json()
