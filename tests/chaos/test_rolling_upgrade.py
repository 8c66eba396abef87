"""Rolling upgrades: workers of an earlier commit and of this one carry out the same runs, forth and back."""

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
from pathlib import Path

import pytest

from tests.chaos.faulty_services import FaultyProxy
from tests.chaos.platform_harness import RECOVERY, PlatformHarness, Site
from worker.sandbox import wait_for
from worker.sandbox.processes import Process, clean_environment, start_process
from worker.sandbox.seed import SeededProject

ROOT = Path(__file__).parents[2]
QUEUES = "deploy,to_task,annotate,control"
TASKS = 8
REQUESTS_IN_FLIGHT = 8
"""`WORKER_ANNOTATE_CONCURRENCY`"""
MAX_REPEATED = 2 * 2 * REQUESTS_IN_FLIGHT
"""Of each killed worker, what is in flight and one group of tasks that are written and not yet recorded."""
START_SECONDS = 60
READY = re.compile(r"@\S+ ready")


def product_at(revision: str, folder: Path) -> Path:
    """The packages of the product as they were at `revision` of this repository."""
    command = ["git", "-C", str(ROOT), "archive", revision, "worker", "shared"]
    try:
        archive = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"this checkout has no commit {revision}")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tree:
        tree.extractall(folder, filter="data")
    return folder


@dataclass
class Fleet:
    """Workers of two releases on one site; they are started from the folders of their releases."""

    site: Site
    old: Path
    folder: Path
    workers: list[Process] = field(default_factory=list)

    def start(self, tree: Path) -> Process:
        """A worker of the release in `tree`, which takes messages."""
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
            **self.site.environment(),
            "WORKER_ANNOTATE_CONCURRENCY": str(REQUESTS_IN_FLIGHT),
            # Before the path of the installed project, which is this tree.
            "PYTHONPATH": str(tree),
        }
        environment = {**clean_environment(), **settings}
        worker = start_process(name, command, log=log, env=environment, cwd=tree, grace_seconds=15)
        self.workers.append(worker)
        worker.wait_until(lambda: READY.search(log.read_text(errors="replace")) is not None, START_SECONDS)
        return worker

    def close(self) -> None:
        """End the workers that are left."""
        for worker in self.workers:
            worker.kill()


@contextlib.contextmanager
def fleet_of(site: Site, revision: str, folder: Path) -> Iterator[Fleet]:
    """A fleet whose old workers are those of `revision`."""
    old = folder / "old"
    old.mkdir()
    fleet = Fleet(site, product_at(revision, old), folder)
    try:
        yield fleet
    finally:
        fleet.close()


def run_pre_processor(site: Site) -> str:
    """A pre-processor whose application runs already, for Serve is not part of this test; its code."""
    code = site.pre_processor()
    job = site.new_job(f"{code}@1.0.0", "deployment")
    record = {"job": int(job), "application": f"{code}@1.0.0", "status": "RUNNING", "created": time.time()}
    site.state.insert("serve_applications", record)
    return code


def publish(site: Site, count: int, code: str) -> dict[str, SeededProject]:
    """As many runs by file as by inference; their projects, by job."""
    projects = {}
    for number in range(count):
        job, project = site.new_job("echo@1.0.0", "to_task"), site.project(TASKS)
        projects[job] = project
        if number % 2:
            site.to_task_by_inference(job, project, code)
        else:
            site.to_task_by_file(job, project)
    return projects


def audit(site: Site, projects: dict[str, SeededProject]) -> tuple[list[str], int]:
    """What is wrong, in words, and how many tasks were written more than once."""
    wrong, repeated = [], 0
    for job, project in projects.items():
        row = site.state.job(int(job))
        assert row is not None
        counts = {name: row["result"].get(name) for name in ("total_tasks", "success_count", "failed_count")}
        if (row["status"], *counts.values()) != ("SUCCEEDED", TASKS, TASKS, 0):
            wrong.append(f"job {job}: {row['status']} {row['result']}")
        query = "SELECT body FROM requests WHERE method = 'PATCH' AND path = ?"
        reports = [json.loads(report["body"]) for report in site.state.rows(query, f"/jobs/{job}/")]
        ends = [json.dumps([report["status"], report["result"]]) for report in reports if "result" in report]
        if len(set(ends)) != 1:
            wrong.append(f"job {job}: {len(ends)} ends, {len(set(ends))} different ones")
        ids = (project.tasks.start, project.tasks.stop)
        rows = site.state.rows("SELECT task, data FROM annotations WHERE task >= ? AND task < ?", *ids)
        found = [(row["task"], json.dumps(row["data"], sort_keys=True)) for row in rows]
        writes = Counter(task for task, _ in found)
        repeated += sum(times > 1 for times in writes.values())
        if len(writes) != TASKS or len(set(found)) != TASKS:
            wrong.append(
                f"job {job}: {len(writes)} of {TASKS} tasks written, {len(set(found))} different data"
            )
    return wrong, repeated


def upgrade_and_roll_back(
    harness: PlatformHarness, folder: Path, revision: str, *, runs: int
) -> tuple[list[str], int]:
    """End the old workers of a mixed fleet, then the new ones, by SIGKILL and SIGTERM, amid runs.

    Returns what is wrong afterwards, in words, and how many tasks were written more than once.
    """
    with (
        harness.site_behind("SYNAPSE_HOST", harness.sandbox.backend_url) as (site, proxy),
        fleet_of(site, revision, folder) as fleet,
    ):
        # Given old and new workers, and runs that they carry out together
        code, half = run_pre_processor(site), runs // 2
        old, other_old, new = fleet.start(fleet.old), fleet.start(fleet.old), fleet.start(ROOT)
        with proxy.slowed(0.5, lambda method, _: method == "PUT"):
            projects = publish(site, half, code)
            wait_for_writes(proxy, TASKS * half // 3)
            # When the old ones end amid the runs
            old.kill()
            other_old.stop()
            # And the new ones amid others, in a rollback
            other_new = fleet.start(ROOT)
            fleet.start(fleet.old)
            projects |= publish(site, runs - half, code)
            wait_for_writes(proxy, TASKS * half + TASKS * half // 3)
            new.kill()
            other_new.stop()
        # Then every run ends
        with contextlib.suppress(Exception):
            wait_for(lambda: all(site.is_over(job) for job in projects), RECOVERY + 60, "ends")
        letters = site.redis.xlen("synapse:dead_letters")
        wrong, repeated = audit(site, projects)
        print(
            f"{revision}: {runs} runs, {repeated} tasks written twice, {letters} dead letters, wrong: {wrong}"
        )
        return [*wrong, *([f"{letters} dead letters"] if letters else [])], repeated


def wait_for_writes(proxy: FaultyProxy, count: int) -> None:
    """Wait until the backend was sent so many annotations."""

    def written() -> bool:
        return sum(method == "PUT" for _, method, _ in list(proxy.server.received)) >= count

    wait_for(written, 90, f"{count} annotations")


@pytest.mark.timeout(420)
def test_fifty_runs_survive_an_upgrade_and_its_rollback(harness: PlatformHarness, tmp_path: Path) -> None:
    wrong, repeated = upgrade_and_roll_back(harness, tmp_path, "HEAD~1", runs=50)
    assert wrong == []
    assert repeated <= MAX_REPEATED


@pytest.mark.chaos
@pytest.mark.timeout(420)
@pytest.mark.parametrize("commits", [40, 150])
def test_runs_survive_an_upgrade_over_many_commits(
    harness: PlatformHarness, tmp_path: Path, commits: int
) -> None:
    wrong, repeated = upgrade_and_roll_back(harness, tmp_path, f"HEAD~{commits}", runs=20)
    assert wrong == []
    assert repeated <= MAX_REPEATED
