"""Many `to_task` runs wait for one pre-processor that starts slowly: polls, dispatches, release times."""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from shared import JobStatus, Publisher, ToTaskMessage
from worker.sandbox import Sandbox, wait_for
from worker.sandbox.sandbox import AGENT_ID
from worker.sandbox.seed import seed_numbered_project

MAX_WAIT_SECONDS = 180


@dataclass(frozen=True)
class Size:
    """How many runs wait, and how long the pre-processor takes to start."""

    runs: int
    start_seconds: int


FULL, QUICK = Size(runs=50, start_seconds=30), Size(runs=10, start_seconds=10)

CONFIG = """
code: slow
version: 1.0.0
actions:
  deployment: {entrypoint: plugin.Deployment}
  inference:
    entrypoint: plugin.SlowServe
    required_resources: {required_cpu_count: 1, required_gpu_count: 0}
    serve_options: {batch: {max_batch_size: 16}}
  to_task: {entrypoint: plugin.ToTask}
"""

CODE = """
import time
from worker.actions import BaseDeploymentAction, BaseServeDeployment, ToTaskAction

class SlowServe(BaseServeDeployment):
    def __init__(self, backend_url):
        super().__init__(backend_url)
        time.sleep(START_SECONDS)
    async def _get_model(self, model_info):
        return None
    async def infer(self, data):
        return data

class Deployment(BaseDeploymentAction):
    entrypoint = SlowServe

class ToTask(ToTaskAction):
    def convert_data_from_inference(self, inference_data, task_data=None):
        return {"seen": True}
"""


def main() -> None:
    """Publish all runs at once; the figures come from the requests that the backend recorded."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs and a faster start: about a minute")
    size = QUICK if parser.parse_args().quick else FULL
    with TemporaryDirectory() as folder:
        release = Path(folder) / "slow@1.0.0"
        release.mkdir()
        (release / "config.yaml").write_text(CONFIG)
        (release / "plugin.py").write_text(f"START_SECONDS = {size.start_seconds}\n{CODE}")
        with Sandbox(plugins_dir=Path(folder)) as sandbox:
            sandbox.start_worker()
            measure(sandbox, size.runs)


def measure(sandbox: Sandbox, runs: int) -> None:
    """Run them and print what the backend recorded."""
    state = sandbox.state
    release = state.value("SELECT id FROM plugin_releases WHERE code = 'slow'")
    projects = [seed_numbered_project(state, 4) for _ in range(runs)]
    jobs = []
    begun = time.time()
    with Publisher(sandbox.redis_url) as publisher:
        for project in projects:
            job = state.add_job(plugin="slow@1.0.0", agent=AGENT_ID, action="to_task")
            params = {"name": "bench", "project": project.id, "agent": AGENT_ID}
            params |= {"method": "inference", "pre_processor": release, "model": 1}
            fields = {"job": job, "plugin": "slow@1.0.0", "params": params}
            publisher.publish(ToTaskMessage.model_validate(fields))
            jobs.append(job)
    for job in jobs:
        wait_for(
            lambda job=job: JobStatus((state.job(job) or {})["status"]).is_final,
            MAX_WAIT_SECONDS,
            f"end of job {job}",
        )
    failed = [job for job in jobs if (state.job(job) or {})["status"] != JobStatus.SUCCEEDED]
    deployment = state.row("SELECT id, updated FROM jobs WHERE action = 'deployment'") or {}
    deployment_ended = state.value(
        "SELECT min(time) FROM requests WHERE method = 'PATCH' AND path = ? AND body LIKE '%SUCCEEDED%'",
        f"/jobs/{deployment['id']}/",
    )
    registered = state.value(
        "SELECT min(time) FROM requests WHERE method = 'POST' AND path = '/serve_applications/'"
    )
    polls = state.value(
        "SELECT count(*) FROM requests"
        " WHERE method = 'GET' AND path LIKE '/serve_applications/%' AND time < ?",
        registered,
    )
    first_annotations = [
        state.value(
            "SELECT min(a.time) FROM annotations a JOIN tasks t ON t.id = a.task WHERE t.project = ?",
            project.id,
        )
        - registered
        for project in projects
    ]
    dispatches = state.value("SELECT count(*) FROM jobs WHERE action = 'deployment'")
    first_annotations.sort()
    after = deployment_ended - registered
    print(f"runs: {runs}, not succeeded: {len(failed)}, dispatches: {dispatches}")
    print(f"waited for the pre-processor: {registered - begun:.1f} s (its job ended {after:+.1f} s later)")
    print(f"backend polls while waiting (the first request of each of the {runs} runs included): {polls}")
    print(
        "seconds from the application's record to a run's first annotation: "
        f"first {first_annotations[0]:.2f}, median {first_annotations[runs // 2]:.2f}, "
        f"last {first_annotations[-1]:.2f}"
    )


if __name__ == "__main__":
    main()
