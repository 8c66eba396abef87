"""What integration tests do with a sandbox and its worker: seed records, publish messages, wait for ends."""

import json
from typing import Any

from celery import Celery
from redis import Redis

from shared import JobStatus, Message, Publisher, StopMessage, ToTaskMessage
from tests.harness.brokers import session_broker
from worker.sandbox import Process, Sandbox, wait_for
from worker.sandbox.sandbox import AGENT_ID, ALL_QUEUES
from worker.sandbox.seed import SeededProject, seed_numbered_project

Row = dict[str, Any]


class SandboxHarness:
    """A started sandbox with one worker."""

    MAX_WAIT_SECONDS = 180.0

    sandbox: Sandbox
    worker: Process

    def connect(self, redis_url: str = "") -> None:
        """Connect to the backend's records, to Redis and to the broker, once the sandbox has started.

        `redis_url`: another URL of the sandbox's Redis.
        """
        self.redis_url = redis_url or self.sandbox.redis_url
        self.broker_url = self.sandbox.broker_url if session_broker.is_rabbitmq else self.redis_url
        self.state = self.sandbox.state
        self.redis = Redis.from_url(self.redis_url, decode_responses=True)
        self.queues = session_broker.queues(self.broker_url, self.redis)
        self.celery = self.new_client()

    def new_client(self) -> Celery:
        """Celery alone, as a backend publishes with it that imports nothing of this project."""
        client = Celery("publisher", broker=self.broker_url, set_as_current=False)
        client.conf.update(task_ignore_result=True)
        return client

    # given

    def new_project(self, count: int, **options: Any) -> SeededProject:
        return seed_numbered_project(self.state, count, **options)

    def new_job(self, **columns: Any) -> str:
        return str(self.state.add_job(agent=AGENT_ID, **columns))

    def release_id(self, code: str, version: str = "1.0.0") -> int:
        query = "SELECT id FROM plugin_releases WHERE code = ? AND version = ?"
        return int(self.state.value(query, code, version))

    def to_task_params(self, project: SeededProject, **params: Any) -> Row:
        return {"name": "a test", "project": project.id, "agent": AGENT_ID, **params}

    # when

    def publish(self, message: Message) -> None:
        with Publisher(self.broker_url) as publisher:
            publisher.publish(message)

    def send_task(self, task: str, queue: str, kwargs: Row) -> None:
        """Publish with Celery alone, as a backend does that imports nothing of this project."""
        self.celery.send_task(task, kwargs=kwargs, queue=queue)

    def to_task(self, project: SeededProject, plugin: str = "echo@1.0.0", **params: Any) -> str:
        """Publish a `to_task` message for a new job; returns the job."""
        job = self.new_job(plugin=plugin, action="to_task")
        fields = self.to_task_params(project, **params)
        self.publish(ToTaskMessage.model_validate({"job": job, "plugin": plugin, "params": fields}))
        return job

    def stop(self, job: str) -> None:
        self.publish(StopMessage(job=job))

    # then

    def job(self, job: str) -> Row:
        """The backend's record of a job."""
        row = self.state.job(int(job) if job.isdigit() else job)
        assert row is not None
        return row

    def wait_for_end(self, job: str, seconds: float | None = None) -> Row:
        """The backend's record of the job, once it is final."""
        self.wait_for(lambda: JobStatus(self.job(job)["status"]).is_final, f"end of job {job}", seconds)
        return self.job(job)

    def final_statuses(self, job: str) -> list[str]:
        """The final statuses of an ended job that the backend accepted."""
        # The backend records a request after its answer, and so after the job has ended.
        self.wait_for(lambda: self._final_statuses(job), f"the record of the end of job {job}", 10)
        return self._final_statuses(job)

    def _final_statuses(self, job: str) -> list[str]:
        query = "SELECT body FROM requests WHERE method = 'PATCH' AND path = ? AND status = 200"
        patches = self.state.rows(query, f"/jobs/{job}/")
        statuses = [json.loads(patch["body"]).get("status") for patch in patches]
        return [status for status in statuses if status and JobStatus(status).is_final]

    def wait_for(self, condition: Any, what: str, seconds: float | None = None) -> None:
        wait_for(condition, self.MAX_WAIT_SECONDS if seconds is None else seconds, what)

    def has_no_messages(self) -> bool:
        """No message is in a queue or unacknowledged."""
        return not self.queues.message_count(ALL_QUEUES.split(","))

    def write_counts(self, project: SeededProject) -> list[int]:
        """How many times each task was written."""
        rows = self.state.rows("SELECT writes FROM tasks WHERE project = ? ORDER BY id", project.id)
        return [row["writes"] for row in rows]

    def worker_log(self) -> str:
        return self.worker.log.read_text(errors="replace")
