"""The live page of a sandbox without Ray, whose worker runs releases that succeed, fail and say markup."""

import json
import textwrap
import time
from pathlib import Path
from typing import Any

import httpx

from shared.channels import dead_letters_key, job_key
from tests.harness.brokers import session_broker
from tests.harness.sandbox_harness import Row, SandboxHarness
from tests.integration.safety.proxied_harness import ECHO
from worker.runs.keys import RunField, ended_run_key, ended_runs_key, run_key
from worker.sandbox import Sandbox
from worker.sandbox.seed import SeededProject

QUEUES = "to_task,annotate,logs,control"

HOSTILE_TEXT = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"

HOSTILE = f"""
from worker.actions import ToTaskAction


class ToTask(ToTaskAction):
    def convert_data_from_file(self, primary_file_url, primary_file_name, *data_file, task_data=None):
        if int(primary_file_name.split(".")[0]) % 2:
            raise ValueError({HOSTILE_TEXT!r})
        return {{"done": True}}
"""

SLOW = """
import time

from worker.actions import ToTaskAction


class ToTask(ToTaskAction):
    def convert_data_from_file(self, primary_file_url, primary_file_name, *data_file, task_data=None):
        time.sleep(0.3)
        return {"done": True}
"""


class ConsoleHarness(SandboxHarness):
    """The sandbox, its worker and its page."""

    MAX_WAIT_SECONDS = 90.0

    def __init__(self, folder: Path) -> None:
        self._plugins = folder / "plugins"
        for code, source in {"echo": ECHO, "hostile": HOSTILE, "slow": SLOW}.items():
            self._add_release(code, source)
        self.sandbox = Sandbox(
            folder / "sandbox",
            plugins_dir=self._plugins,
            with_ray=False,
            broker_url=session_broker.new_url(),
        )
        self.url = ""

    def start(self) -> None:
        self.sandbox.start()
        self.connect()
        environment = {"WORKER_PLUGIN_HOST": "process", "WORKER_PRE_PROCESSOR_TIMEOUT_SECONDS": "600"}
        # Nobody listens on `deploy`, so what waits for a deployment waits as long as a test needs it.
        self.worker = self.sandbox.start_worker(queues=QUEUES, concurrency=8, env=environment)
        self.url = self.sandbox.start_console()

    def close(self) -> None:
        self.sandbox.stop()
        for client in ("redis", "celery"):
            if hasattr(self, client):
                getattr(self, client).close()

    def to_task_params(self, project: SeededProject, **params: Any) -> Row:
        return super().to_task_params(project, **{"target_specification_name": "label_1", **params})

    def waiting_run(self) -> str:
        """A run that waits for a pre-processor which never starts."""
        params = {"method": "inference", "pre_processor": self.release_id("echo"), "model": 1}
        return self.to_task(self.new_project(1), **params)

    def dead_letter(self) -> str:
        """A message that was rejected; returns the id of its dead letter."""
        before = len(self._dead_letters())
        self.send_task(HOSTILE_TEXT, "to_task", {"job": self.new_job()})
        self.wait_for(lambda: len(self._dead_letters()) > before, "the dead letter")
        return str(self._dead_letters()[-1][0])

    def rejected_run(self) -> tuple[str, str]:
        """A run of a release that is not there: its job, once it is FAILED, and the id of its dead letter."""
        job = self.to_task(self.new_project(2), plugin="late@1.0.0")
        self.wait_for_end(job)
        return job, str(self._dead_letters()[-1][0])

    def expired_run(self) -> str:
        """A run some of whose tasks failed, as if it had ended days ago: its own keys have expired."""
        job = self.to_task(self.new_project(6), plugin="hostile@1.0.0")
        self.wait_for_end(job)
        # The report of the end writes them once more.
        self.wait_for(lambda: self.redis.hexists(run_key(job), RunField.REPORTED), "the end of its report")
        self.redis.delete(*self.redis.scan_iter(f"{job_key(job)}*"))
        return job

    def add_ended_runs(self, count: int) -> list[str]:
        """Runs as they are kept, which ended one after the other an hour ago."""
        record = {"status": "STOPPED", "action": "to_task", "started": "1", "updated": "2"}
        jobs = [f"old-{number}" for number in range(count)]
        with self.redis.pipeline() as pipe:
            for number, job in enumerate(jobs):
                pipe.set(ended_run_key(job), json.dumps(record))
                for index in (ended_runs_key(), ended_runs_key("STOPPED")):
                    pipe.zadd(index, {job: time.time() - 3_600 + number})
            pipe.execute()
        return jobs

    def add_missing_release(self) -> None:
        """The release of `rejected_run`."""
        self._add_release("late", ECHO)

    def get(self, path: str) -> Any:
        """What the page asks for."""
        answer = httpx.get(f"{self.url}/api/{path}", trust_env=False, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def _dead_letters(self) -> list[Any]:
        return list(self.redis.xrange(dead_letters_key()))

    def _add_release(self, code: str, source: str) -> None:
        folder = self._plugins / f"{code}@1.0.0" / "plugin"
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "actions.py").write_text(textwrap.dedent(source))
        names = {"to_task": "ToTask", "deployment": "Deployment", "inference": "Served"}
        actions = [
            f"  {action}: {{entrypoint: plugin.actions.{name}}}"
            for action, name in names.items()
            if f"class {name}" in source
        ]
        text = "\n".join([f"code: {code}", "version: 1.0.0", "actions:", *actions, ""])
        (folder.parent / "config.yaml").write_text(text)
