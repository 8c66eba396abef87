"""Runs generated releases on a sandbox, in the SDK's Python, and prints what came of them as JSON.

`python -m tests.integration.sdk.run_templates by_file|on_ray`
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

warnings.simplefilter("ignore")  # the SDK's own, before its import

from shared.channels import logs_history  # noqa: E402
from tests.harness.sandbox_harness import SandboxHarness  # noqa: E402
from tests.integration.sdk import templates  # noqa: E402
from worker.sandbox import Sandbox  # noqa: E402
from worker.sandbox.sandbox import AGENT_ID  # noqa: E402
from worker.sandbox.seed import seed_model  # noqa: E402

TASKS = 5


class TemplateRuns(SandboxHarness):
    """A sandbox whose plugin store has generated releases."""

    def __init__(self, sandbox: Sandbox, **environment: str) -> None:
        self.sandbox = sandbox
        self.worker = sandbox.start_worker(env=environment)
        self.connect()

    def annotate(self, plugin: str, **params: Any) -> dict[str, Any]:
        """What a run of `to_task` leaves behind."""
        project = self.new_project(TASKS)
        job = self.to_task(project, plugin, **params)
        end = self.wait_for_end(job)
        rows = self.state.rows("SELECT data FROM tasks WHERE project = ? ORDER BY id", project.id)
        return {**self._traces(job, end), "project": project.id, "data": [row["data"] for row in rows]}

    def deploy(self, plugin: str) -> dict[str, Any]:
        """What a deployment leaves behind."""
        job = self.new_job(plugin=plugin, action="deployment")
        self.send_task("deploy", "deploy", {"job": job, "plugin": plugin, "agent": AGENT_ID})
        return self._traces(job, self.wait_for_end(job))

    def _traces(self, job: str, end: dict[str, Any]) -> dict[str, Any]:
        self.wait_for(lambda: "type" in self.redis.xrevrange(logs_history(job), count=1)[0][1], "end of log")
        logs = self.state.rows("SELECT event, data FROM logs WHERE job = ? ORDER BY id", int(job))
        return {
            "status": end["status"],
            "result": end["result"],
            "progress": (end["progress_record"] or {}).get("record"),
            "metrics": (end["metrics_record"] or {}).get("record"),
            "events": [[row["event"], row["data"]] for row in logs],
            "log": [fields["line"] for _, fields in self.redis.xrange(logs_history(job)) if "line" in fields],
        }


def by_file() -> dict[str, Any]:
    """`pre_annotation` by file, without Ray: a few seconds."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        templates.write_pre_annotation(store)
        with Sandbox(plugins_dir=store, with_ray=False) as sandbox:
            runs = TemplateRuns(sandbox, WORKER_PLUGIN_HOST="process")
            params = {"method": "file", "target_specification_name": "label_1"}
            return {"to_task": runs.annotate("sdk-to-task@0.1.0", **params)}


def on_ray() -> dict[str, Any]:
    """Everything on a real Ray: about a minute."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        templates.write_pre_annotation(store)
        templates.write_neural_net(store)
        templates.write_decorated(store)
        templates.write_custom_execute(store)
        templates.write_steps(store)
        templates.copy_example(store)
        with Sandbox(plugins_dir=store, num_cpus=4) as sandbox:
            runs = TemplateRuns(sandbox)
            greeting = {"greeting.txt": b"Hello"}
            model = seed_model(sandbox.state, sandbox.files_dir, sandbox.files_url, greeting)
            params = {"method": "file", "target_specification_name": "label_1"}
            done = {
                "backend_url": sandbox.backend_url,
                "by_file": runs.annotate("sdk-to-task@0.1.0", **params),
                "deployment": runs.deploy("sdk-net@0.1.0"),
                "execute": runs.deploy("sdk-execute@0.1.0"),
            }
            for what in ("succeed", "fail"):
                done[what] = runs.annotate("sdk-steps@0.1.0", **params, description=what)
            params = {"method": "inference", "pre_processor": runs.release_id("sdk", "1.0.0"), "model": model}
            done["example"] = runs.annotate("sdk@1.0.0", **params)
            for code in ("sdk-net", "sdk-decorated"):
                release = runs.release_id(code, "0.1.0")
                params = {"method": "inference", "pre_processor": release, "model": model}
                done[code] = runs.annotate("sdk-to-task@0.1.0", **params)
            return done


if __name__ == "__main__":
    print(json.dumps({"by_file": by_file, "on_ray": on_ray}[sys.argv[1]]()))
