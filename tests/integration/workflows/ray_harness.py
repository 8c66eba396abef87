"""What a test does to the platform, in the words of the specification."""

from typing import Any

import httpx
from celery import Celery
from redis import Redis

from shared import DeployMessage, JobStatus, Message, Publisher, StopMessage, ToTaskMessage
from worker.sandbox import Process, Sandbox, wait_for
from worker.sandbox.sandbox import AGENT_ID
from worker.sandbox.seed import SeededProject, seed_numbered_project

Row = dict[str, Any]
DEADLINE_SECONDS = 60.0


class Platform:
    """A sandbox and its worker."""

    def __init__(self, sandbox: Sandbox, worker: Process) -> None:
        self.sandbox = sandbox
        self.state = sandbox.state
        self.worker = worker
        self.redis = Redis.from_url(sandbox.redis_url, decode_responses=True)
        assert sandbox.ray is not None
        self.serve_url = sandbox.ray.serve_url

    # given

    def project(self, count: int, **options: Any) -> SeededProject:
        return seed_numbered_project(self.state, count, **options)

    def release(self, code: str, version: str = "1.0.0") -> int:
        query = "SELECT id FROM plugin_releases WHERE code = ? AND version = ?"
        return int(self.state.value(query, code, version))

    def new_job(self, **columns: Any) -> str:
        return str(self.state.add_job(agent=AGENT_ID, **columns))

    # when

    def publish(self, message: Message) -> None:
        with Publisher(self.sandbox.redis_url) as publisher:
            publisher.publish(message)

    def send_bare(self, task: str, queue: str, **kwargs: Any) -> None:
        """As a backend does that imports nothing of this project."""
        with Celery(broker=self.sandbox.redis_url, set_as_current=False) as app:
            app.send_task(task, kwargs=kwargs, queue=queue)

    def deploy(self, plugin: str, **params: Any) -> str:
        job = self.new_job(plugin=plugin, action="deployment")
        fields = {"job": job, "plugin": plugin, "agent": AGENT_ID, "params": params}
        self.publish(DeployMessage.model_validate(fields))
        return job

    def to_task(self, project: SeededProject, plugin: str = "echo@1.0.0", **params: Any) -> str:
        job = self.new_job(plugin=plugin, action="to_task")
        fields = {"name": "a test", "project": project.id, "agent": AGENT_ID, **params}
        self.publish(ToTaskMessage.model_validate({"job": job, "plugin": plugin, "params": fields}))
        return job

    def to_task_by_file(self, project: SeededProject, plugin: str = "echo@1.0.0") -> str:
        return self.to_task(project, plugin, method="file", target_specification_name="label_1")

    def to_task_by_inference(
        self, project: SeededProject, pre_processor: int, plugin: str = "echo@1.0.0"
    ) -> str:
        return self.to_task(project, plugin, method="inference", pre_processor=pre_processor, model=1)

    def stop(self, job: str) -> None:
        self.publish(StopMessage(job=job))

    # then

    def job(self, job: str) -> Row:
        row = self.state.job(int(job) if job.isdigit() else job)
        assert row is not None
        return row

    def end_of(self, job: str, seconds: float = DEADLINE_SECONDS) -> Row:
        """The job once it is final at the backend."""
        wait_for(lambda: JobStatus(self.job(job)["status"]).is_final, seconds, f"end of job {job}")
        return self.job(job)

    def wait(self, condition: Any, what: str, seconds: float = DEADLINE_SECONDS) -> None:
        wait_for(condition, seconds, what)

    def annotations(self, project: SeededProject) -> list[Row]:
        tasks = self.state.rows("SELECT * FROM tasks WHERE project = ? ORDER BY id", project.id)
        return [task for task in tasks if task["data"] is not None]

    def writes(self, project: SeededProject) -> list[int]:
        """How many times each task was written."""
        rows = self.state.rows("SELECT writes FROM tasks WHERE project = ? ORDER BY id", project.id)
        return [row["writes"] for row in rows]

    def requests(self, method: str, path: str) -> list[Row]:
        """What the backend received."""
        return self.state.rows("SELECT * FROM requests WHERE method = ? AND path = ?", method, path)

    def dispatches(self, code: str) -> int:
        """Deployments of a plugin that the backend was asked for."""
        query = "SELECT count(*) FROM jobs WHERE plugin LIKE ? AND action = 'deployment' AND agent = ?"
        return int(self.state.value(query, f"{code}@%", AGENT_ID))

    def applications(self, job: str) -> list[Row]:
        return self.state.rows("SELECT * FROM serve_applications WHERE job = ?", int(job))

    def serve_applications(self) -> dict[str, Any]:
        """Ray Serve's own view, through the agent."""
        assert self.sandbox.agent_url is not None
        headers = {"Authorization": self.sandbox.agent_token}
        answer = httpx.get(f"{self.sandbox.agent_url}/serve_applications/", headers=headers)
        found = answer.json()
        return {app["name"]: app for app in (found["results"] if isinstance(found, dict) else found)}

    def delete_application(self, name: str) -> None:
        headers = {"Authorization": self.sandbox.agent_token}
        httpx.delete(f"{self.sandbox.agent_url}/serve_applications/{name}/", headers=headers, timeout=30)
        self.wait(lambda: name not in self.serve_applications(), f"end of {name}")

    def ask(self, name: str, body: Row) -> Any:
        """Call an application through Ray Serve's HTTP."""
        route = self.serve_applications()[name]["route_prefix"]
        return httpx.post(f"{self.serve_url}{route}/", json=body, timeout=30).json()

    def worker_log(self) -> str:
        return self.worker.log.read_text(errors="replace")
