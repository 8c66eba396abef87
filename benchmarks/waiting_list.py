"""50 `to_task` runs wait for one pre-processor that takes 30 s to start: polls, dispatches, release times."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from shared import JobStatus, Publisher, ToTaskMessage
from worker.sandbox import Sandbox, wait_for
from worker.sandbox.sandbox import AGENT_ID
from worker.sandbox.seed import seed_numbered_project

RUNS = 50
START_SECONDS = 30

CONFIG = """
code: patient
version: 1.0.0
actions:
  deployment: {entrypoint: plugin.Deployment}
  inference:
    entrypoint: plugin.Patient
    required_resources: {required_cpu_count: 1, required_gpu_count: 0}
    serve_options: {batch: {max_batch_size: 16}}
  to_task: {entrypoint: plugin.ToTask}
"""

CODE = f"""
import time
from worker.actions import BaseDeploymentAction, BaseServeDeployment, ToTaskAction

class Patient(BaseServeDeployment):
    def __init__(self, backend_url):
        super().__init__(backend_url)
        time.sleep({START_SECONDS})
    async def _get_model(self, model_info):
        return None
    async def infer(self, data):
        return data

class Deployment(BaseDeploymentAction):
    entrypoint = Patient

class ToTask(ToTaskAction):
    def convert_data_from_inference(self, inference_data, task_data=None):
        return {{"seen": True}}
"""


def main() -> None:
    """Publish all at once and read the backend's own record of requests afterwards."""
    with TemporaryDirectory() as folder:
        release = Path(folder) / "patient@1.0.0"
        release.mkdir()
        (release / "config.yaml").write_text(CONFIG)
        (release / "plugin.py").write_text(CODE)
        with Sandbox(plugins_dir=Path(folder)) as sandbox:
            sandbox.start_worker()
            measure(sandbox)


def measure(sandbox: Sandbox) -> None:
    """Run it and print what the backend saw."""
    state = sandbox.state
    release = state.value("SELECT id FROM plugin_releases WHERE code = 'patient'")
    projects = [seed_numbered_project(state, 4) for _ in range(RUNS)]
    jobs = []
    begun = time.time()
    with Publisher(sandbox.redis_url) as publisher:
        for project in projects:
            job = state.add_job(plugin="patient@1.0.0", agent=AGENT_ID, action="to_task")
            params = {"name": "bench", "project": project.id, "agent": AGENT_ID}
            params |= {"method": "inference", "pre_processor": release, "model": 1}
            fields = {"job": job, "plugin": "patient@1.0.0", "params": params}
            publisher.publish(ToTaskMessage.model_validate(fields))
            jobs.append(job)
    for job in jobs:
        wait_for(lambda job=job: JobStatus((state.job(job) or {})["status"]).is_final, 180, f"job {job}")
    failed = [job for job in jobs if (state.job(job) or {})["status"] != JobStatus.SUCCEEDED]
    deployed = state.row("SELECT id, updated FROM jobs WHERE action = 'deployment'") or {}
    running = state.value(
        "SELECT min(time) FROM requests WHERE method = 'PATCH' AND path = ? AND body LIKE '%SUCCEEDED%'",
        f"/jobs/{deployed['id']}/",
    )
    registered = state.value(
        "SELECT min(time) FROM requests WHERE method = 'POST' AND path = '/serve_applications/'"
    )
    polls = state.value(
        "SELECT count(*) FROM requests"
        " WHERE method = 'GET' AND path LIKE '/serve_applications/%' AND time < ?",
        registered,
    )
    first = [
        state.value(
            "SELECT min(a.time) FROM annotations a JOIN tasks t ON t.id = a.task WHERE t.project = ?",
            project.id,
        )
        - registered
        for project in projects
    ]
    dispatches = state.value("SELECT count(*) FROM jobs WHERE action = 'deployment'")
    first.sort()
    after = running - registered
    print(f"runs: {RUNS}, not succeeded: {len(failed)}, dispatches: {dispatches}")
    print(f"waited for the pre-processor: {registered - begun:.1f} s (its job ended {after:+.1f} s later)")
    print(f"backend polls while waiting (detection of {RUNS} runs included): {polls}")
    print(
        "seconds from RUNNING to a run's first annotation: "
        f"first {first[0]:.2f}, median {first[RUNS // 2]:.2f}, last {first[-1]:.2f}"
    )


if __name__ == "__main__":
    main()
