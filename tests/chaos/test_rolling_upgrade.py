"""Rolling upgrades: workers of an earlier commit and of this one work on the same runs, forth and back."""

import contextlib
import io
import json
import re
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

import pytest

from tests.chaos.faulty_services import FaultyProxy
from tests.chaos.platform_harness import RECOVERY_SECONDS, Fleet, PlatformHarness
from worker.sandbox import SandboxError, wait_for
from worker.sandbox.processes import Process, clean_environment, start_process
from worker.sandbox.seed import SeededProject

ROOT = Path(__file__).parents[2]
QUEUES = "deploy,to_task,annotate,control"
TASKS = 8
REQUESTS_IN_FLIGHT = 8
"""`WORKER_ANNOTATE_CONCURRENCY`"""
MAX_REPEATED = 2 * 2 * REQUESTS_IN_FLIGHT
"""Of each killed worker: requests in flight, and one group of tasks that are written and not yet recorded."""
MAX_START_SECONDS = 60
READY = re.compile(r"@\S+ ready")


def export_product(revision: str, folder: Path) -> Path:
    """Write the product's packages of `revision` of this repository to `folder`, and what is missing here."""
    command = ["git", "-C", str(ROOT), "archive", revision, "worker", "shared", "requirements*"]
    try:
        archive = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"this checkout has no commit {revision}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tree:
        tree.extractall(folder, filter="data")
    [requirements] = [*folder.glob("requirements.txt"), *folder.glob("requirements/worker.txt")]
    install_missing(requirements, folder)
    return folder


def install_missing(requirements: Path, folder: Path) -> None:
    """Install into `folder` what a release needs and this one does not any more."""
    pinned = re.findall(r"^([\w.-]+)==([^\s;]+)([^\\\n]*)", requirements.read_text(), flags=re.MULTILINE)
    missing = [
        f"{name}=={version}{marker}".strip() for name, version, marker in pinned if not is_installed(name)
    ]
    if not missing:
        return
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *missing]
    if subprocess.run(pip, check=False).returncode != 0:
        pytest.skip(f"cannot install what the earlier release needs: {', '.join(missing)}")


def is_installed(name: str) -> bool:
    """Whether this environment has the package."""
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


@dataclass
class MixedReleases:
    """Workers of two releases in one fleet, each started from the folder of its release."""

    fleet: Fleet
    old: Path
    folder: Path
    workers: list[Process] = field(default_factory=list)

    def start_worker(self, tree: Path) -> Process:
        """Start a worker of the release in `tree`, and wait until it consumes."""
        name = f"{tree.name}{len(self.workers)}"
        log = self.folder / f"{name}.log"
        log.touch()
        command = [
            sys.executable,
            "-m",
            "celery",
            "-A",
            "worker",
            "worker",
            "-Q",
            QUEUES,
            "--pool",
            "threads",
        ]
        command += ["-c", "8", "-l", "INFO", "--without-mingle", "--without-gossip", "-n", f"{name}@upgrade"]
        settings = {
            **self.fleet.environment(),
            "WORKER_ANNOTATE_CONCURRENCY": str(REQUESTS_IN_FLIGHT),
            # It comes before the path of the installed project, which is this tree.
            "PYTHONPATH": str(tree),
        }
        environment = {**clean_environment(), **settings}
        worker = start_process(name, command, log=log, env=environment, cwd=tree, grace_seconds=15)
        self.workers.append(worker)
        worker.wait_until(
            lambda: READY.search(log.read_text(errors="replace")) is not None, MAX_START_SECONDS
        )
        return worker

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()


@contextlib.contextmanager
def mixed_releases(fleet: Fleet, revision: str, folder: Path) -> Iterator[MixedReleases]:
    """Workers of `revision` and of this tree, for the duration of the block."""
    old = folder / "old"
    old.mkdir()
    releases = MixedReleases(fleet, export_product(revision, old), folder)
    try:
        yield releases
    finally:
        releases.close()


def add_running_pre_processor(fleet: Fleet) -> str:
    """Add a pre-processor that the backend lists as running; returns its code. This test deploys nothing."""
    code = fleet.new_pre_processor()
    job = fleet.new_job(f"{code}@1.0.0", "deployment")
    record = {"job": int(job), "application": f"{code}@1.0.0", "status": "RUNNING", "created": time.time()}
    fleet.state.insert("serve_applications", record)
    return code


def publish(fleet: Fleet, count: int, code: str) -> dict[str, SeededProject]:
    """Publish as many runs by file as by inference; returns their projects by job."""
    projects = {}
    for number in range(count):
        job, project = fleet.new_job("echo@1.0.0", "to_task"), fleet.new_project(TASKS)
        projects[job] = project
        if number % 2:
            fleet.to_task_by_inference(job, project, code)
        else:
            fleet.to_task_by_file(job, project)
    return projects


def audit(fleet: Fleet, projects: dict[str, SeededProject]) -> tuple[list[str], int]:
    """Violations as text, and how many tasks were written more than once."""
    violations, repeated = [], 0
    for job, project in projects.items():
        row = fleet.state.job(int(job))
        assert row is not None
        counts = {name: row["result"].get(name) for name in ("total_tasks", "success_count", "failed_count")}
        if (row["status"], *counts.values()) != ("SUCCEEDED", TASKS, TASKS, 0):
            violations.append(f"job {job}: {row['status']} {row['result']}")
        query = "SELECT body FROM requests WHERE method = 'PATCH' AND path = ?"
        reports = [json.loads(report["body"]) for report in fleet.state.rows(query, f"/jobs/{job}/")]
        ends = [json.dumps([report["status"], report["result"]]) for report in reports if "result" in report]
        if len(set(ends)) != 1:
            violations.append(f"job {job}: {len(ends)} ends, {len(set(ends))} different ones")
        ids = (project.tasks.start, project.tasks.stop)
        rows = fleet.state.rows("SELECT task, data FROM annotations WHERE task >= ? AND task < ?", *ids)
        written = [(row["task"], json.dumps(row["data"], sort_keys=True)) for row in rows]
        writes = Counter(task for task, _ in written)
        repeated += sum(times > 1 for times in writes.values())
        if len(writes) != TASKS or len(set(written)) != TASKS:
            violations.append(
                f"job {job}: {len(writes)} of {TASKS} tasks written, {len(set(written))} different data"
            )
    return violations, repeated


def violations_after_upgrade_and_rollback(
    harness: PlatformHarness, folder: Path, revision: str, *, runs: int
) -> tuple[list[str], int]:
    """End the old workers of a mixed fleet, then the new ones, by SIGKILL and SIGTERM, during runs.

    Returns the violations, and how many tasks were written more than once.
    """
    with (
        harness.fleet_behind_proxy("SYNAPSE_HOST", harness.sandbox.backend_url) as (fleet, proxy),
        mixed_releases(fleet, revision, folder) as releases,
    ):
        # Given old and new workers that work on the same runs
        code, half = add_running_pre_processor(fleet), runs // 2
        old, other_old = releases.start_worker(releases.old), releases.start_worker(releases.old)
        new = releases.start_worker(ROOT)
        with proxy.delay(0.5, lambda method, _: method == "PUT"):
            projects = publish(fleet, half, code)
            wait_for_writes(proxy, TASKS * half // 3)
            # When the old workers end during the runs
            old.kill()
            other_old.stop()
            # And, in a rollback, the new workers during others
            other_new = releases.start_worker(ROOT)
            releases.start_worker(releases.old)
            projects |= publish(fleet, runs - half, code)
            wait_for_writes(proxy, TASKS * half + TASKS * half // 3)
            new.kill()
            other_new.stop()
        # Then every run ends
        # (The audit reports the runs that have not ended.)
        with contextlib.suppress(SandboxError):
            wait_for(
                lambda: all(fleet.has_ended(job) for job in projects),
                RECOVERY_SECONDS + 60,
                "ends of all runs",
            )
        letters = fleet.redis.xlen("synapse:dead_letters")
        violations, repeated = audit(fleet, projects)
        print(
            f"{revision}: {runs} runs, {repeated} tasks written twice, {letters} dead letters,"
            f" violations: {violations}"
        )
        return [*violations, *([f"{letters} dead letters"] if letters else [])], repeated


def wait_for_writes(proxy: FaultyProxy, count: int) -> None:
    """Wait until the backend has received so many annotations."""

    def has_received_all() -> bool:
        return sum(method == "PUT" for _, method, _ in list(proxy.server.received)) >= count

    wait_for(has_received_all, 90, f"{count} annotations")


@pytest.mark.timeout(420)
def test_runs_survive_an_upgrade_and_its_rollback(harness: PlatformHarness, tmp_path: Path) -> None:
    violations, repeated = violations_after_upgrade_and_rollback(harness, tmp_path, "HEAD~1", runs=20)
    assert violations == []
    assert repeated <= MAX_REPEATED


@pytest.mark.chaos
@pytest.mark.timeout(420)
@pytest.mark.parametrize(("commits", "runs"), [(1, 50), (40, 20), (150, 20)])
def test_runs_survive_an_upgrade_over_many_commits(
    harness: PlatformHarness, tmp_path: Path, commits: int, runs: int
) -> None:
    revision = f"HEAD~{commits}"
    violations, repeated = violations_after_upgrade_and_rollback(harness, tmp_path, revision, runs=runs)
    assert violations == []
    assert repeated <= MAX_REPEATED
