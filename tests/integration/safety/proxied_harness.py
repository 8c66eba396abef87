"""A sandbox without Ray whose backend is reached through a recording proxy, and one worker on all queues."""

import json
import textwrap
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from shared.channels import dead_letters_key, job_key
from tests.harness.brokers import session_broker
from tests.harness.sandbox_harness import Row, SandboxHarness
from tests.integration.safety.recording_proxy import RecordingProxy
from worker.sandbox import Process, Sandbox
from worker.sandbox.seed import SeededProject


class ProxiedHarness(SandboxHarness):
    """The sandbox, its worker, and the proxy between worker and backend."""

    MAX_WAIT_SECONDS = 90.0

    def __init__(self, folder: Path) -> None:
        self.plugins = folder / "plugins"
        self.plugins.mkdir()
        self.add_release("echo", ECHO)
        self.sandbox = Sandbox(
            folder / "sandbox",
            plugins_dir=self.plugins,
            with_ray=False,
            broker_url=session_broker.new_url(),
        )
        self.proxy = RecordingProxy(self.sandbox.backend_url)

    def start(self, **env: str) -> None:
        self.sandbox.start()
        self.connect()
        self.start_worker(**env)

    def start_worker(self, concurrency: int = 8, **env: str) -> Process:
        settings = {"SYNAPSE_HOST": self.proxy.url, "WORKER_PLUGIN_HOST": "process", **env}
        self.worker = self.sandbox.start_worker(concurrency=concurrency, env=settings)
        return self.worker

    def close(self) -> None:
        try:
            self.proxy.close()
        finally:
            self.sandbox.stop()
        for client in ("redis", "celery"):
            if hasattr(self, client):
                getattr(self, client).close()

    # given

    def add_release(self, code: str, actions: str, version: str = "1.0.0", env: Row | None = None) -> None:
        """Add a release with the code of its actions to the plugin store."""
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

    def to_task_params(self, project: SeededProject, **params: Any) -> Row:
        return super().to_task_params(project, **{"target_specification_name": "label_1", **params})

    # when

    def run_command(self, *arguments: str) -> tuple[int, str]:
        """Run `synapse-worker`; returns its exit code and output."""
        from worker.cli import console
        from worker.cli.main import app as command

        # A console has read its width when it was made.
        console.out.width = console.err.width = 200
        environ = {"REDIS_URL": self.redis_url, "CELERY_BROKER_URL": self.broker_url, "TERM": "dumb"}
        result = CliRunner().invoke(command, list(arguments), env=environ)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    # then

    def run_record(self, job: str) -> Row:
        """The fields of the run in Redis."""
        return dict(self.redis.hgetall(job_key(job)))

    def is_at_step(self, job: str, step: str) -> bool:
        return bool(self.run_record(job).get("step") == step)

    def dead_letters(self) -> list[Row]:
        return [{"id": id_, **letter} for id_, letter in self.redis.xrange(dead_letters_key())]


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
