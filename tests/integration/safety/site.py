"""A platform without Ray whose backend is reached through a proxy, and one worker on all queues."""

import json
import textwrap
from pathlib import Path
from typing import Any

from celery import Celery
from redis import Redis
from typer.testing import CliRunner

from shared import JobStatus, Message, Publisher, StopMessage, ToTaskMessage
from shared.channels import dead_letters_key, job_key
from tests.integration.safety.proxy import Proxy
from worker.broker.delivery import unacked_key
from worker.sandbox import Process, Sandbox, wait_for
from worker.sandbox.sandbox import AGENT_ID
from worker.sandbox.seed import SeededProject, seed_numbered_project

Row = dict[str, Any]
HUSHED = "hush-release-env-8c41"


class Site:
    """What a test does to it, in the words of the specification."""

    def __init__(self, folder: Path) -> None:
        self.plugins = folder / "plugins"
        self.plugins.mkdir()
        self.install("echo", ECHO)
        self.sandbox = Sandbox(folder / "sandbox", plugins_dir=self.plugins, with_ray=False)
        self.proxy = Proxy(self.sandbox.backend_url)
        self.worker: Process | None = None

    def start(self, **env: str) -> None:
        self.sandbox.start()
        self.state = self.sandbox.state
        self.redis = Redis.from_url(self.sandbox.redis_url, decode_responses=True)
        self.app = Celery("publisher", broker=self.sandbox.redis_url, set_as_current=False)
        self.app.conf.update(task_ignore_result=True)
        self.start_worker(**env)

    def start_worker(self, **env: str) -> Process:
        settings = {"SYNAPSE_HOST": self.proxy.url, "WORKER_PLUGIN_HOST": "process", **env}
        self.worker = self.sandbox.start_worker(concurrency=8, env=settings)
        return self.worker

    def close(self) -> None:
        try:
            self.proxy.close()
        finally:
            self.sandbox.stop()
        for client in ("redis", "app"):
            if hasattr(self, client):
                getattr(self, client).close()

    # given

    def install(self, code: str, actions: str, version: str = "1.0.0", env: Row | None = None) -> None:
        release = self.plugins / f"{code}@{version}"
        (release / "plugin").mkdir(parents=True)
        (release / "plugin" / "__init__.py").touch()
        (release / "plugin" / "actions.py").write_text(textwrap.dedent(actions))
        names = {"to_task": "ToTask", "deployment": "Deployment", "inference": "Served"}
        config = {
            "code": code,
            "version": version,
            "env": env or {},
            "actions": {
                action: {"entrypoint": f"plugin.actions.{name}"}
                for action, name in names.items()
                if f"class {name}" in actions
            },
        }
        (release / "config.yaml").write_text(json.dumps(config))

    def project(self, count: int) -> SeededProject:
        return seed_numbered_project(self.state, count)

    def new_job(self, **columns: Any) -> str:
        return str(self.state.add_job(agent=AGENT_ID, **columns))

    def params(self, project: SeededProject, **more: Any) -> Row:
        fields = {"name": "a test", "project": project.id, "agent": AGENT_ID}
        return {**fields, "target_specification_name": "label_1", **more}

    # when

    def publish(self, message: Message) -> None:
        with Publisher(self.sandbox.redis_url) as publisher:
            publisher.publish(message)

    def bare(self, task: str, queue: str, kwargs: Row, **options: Any) -> None:
        self.app.send_task(task, kwargs=kwargs, queue=queue, **options)

    def to_task(self, project: SeededProject, plugin: str = "echo@1.0.0", **params: Any) -> str:
        job = self.new_job(plugin=plugin, action="to_task")
        fields = self.params(project, **params)
        self.publish(ToTaskMessage.model_validate({"job": job, "plugin": plugin, "params": fields}))
        return job

    def stop(self, job: str) -> None:
        self.publish(StopMessage(job=job))

    def command(self, *arguments: str) -> tuple[int, str]:
        """The command `synapse-worker`: its exit code and all that it says."""
        from worker.cli.main import app as command

        environ = {"REDIS_URL": self.sandbox.redis_url, "COLUMNS": "200", "TERM": "dumb"}
        result = CliRunner().invoke(command, list(arguments), env=environ)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    # then

    def job(self, job: str) -> Row:
        row = self.state.job(int(job) if job.isdigit() else job)
        assert row is not None
        return row

    def end_of(self, job: str, seconds: float = 30) -> Row:
        """The job once it is final at the backend."""
        wait_for(lambda: JobStatus(self.job(job)["status"]).is_final, seconds, f"end of job {job}")
        return self.job(job)

    def record(self, job: str) -> Row:
        return dict(self.redis.hgetall(job_key(job)))

    def is_at(self, job: str, step: str) -> bool:
        return bool(self.record(job).get("step") == step)

    def wait(self, condition: Any, what: str, seconds: float = 20) -> None:
        wait_for(condition, seconds, what)

    def quiet(self) -> bool:
        """No message is waiting or being worked on."""
        queues = ("deploy", "to_task", "annotate", "logs", "control")
        return not any(self.redis.llen(queue) for queue in queues) and not self.redis.hlen(unacked_key())

    def writes(self, project: SeededProject) -> list[int]:
        rows = self.state.rows("SELECT writes FROM tasks WHERE project = ? ORDER BY id", project.id)
        return [row["writes"] for row in rows]

    def finals(self, job: str) -> list[str]:
        """Bodies of the final statuses that the backend took."""
        patches = self.state.rows(
            "SELECT body FROM requests WHERE method = 'PATCH' AND path = ? AND status = 200", f"/jobs/{job}/"
        )
        found = [json.loads(patch["body"]).get("status") for patch in patches]
        return [status for status in found if status in ("STOPPED", "SUCCEEDED", "FAILED")]

    def letters(self) -> list[Row]:
        return [{"id": id_, **letter} for id_, letter in self.redis.xrange(dead_letters_key())]

    def log(self) -> str:
        assert self.worker is not None
        return self.worker.log.read_text(errors="replace")


ECHO = """
    from worker.actions import BaseDeploymentAction, BaseServeDeployment, ToTaskAction


    class Served(BaseServeDeployment):
        async def _get_model(self, model_info):
            return None

        async def infer(self, data):
            return data


    class Deployment(BaseDeploymentAction):
        entrypoint = Served


    class ToTask(ToTaskAction):
        def convert_data_from_file(
            self, primary_file_url, primary_file_name, data_file_url, data_file_name, task_data=None
        ):
            return {"label": data_file_name}

        def setup_inference_params(self, primary_file_url, primary_file_name, data_files, **more):
            return {"model": more["model_id"], "method": "post", "json": {"text": primary_file_name}}

        def convert_data_from_inference(self, inference_data, task_data=None):
            return {"said": inference_data}
"""
