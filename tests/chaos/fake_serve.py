"""Fakes of Ray Serve and of Ray's jobs in an SQLite file, which outlives the test workers that share it."""

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

from tests.chaos.crash_injection import RequestedCrashes
from worker.deploy import tasks as deploy_tasks
from worker.deploy.cluster import ServeState
from worker.deploy.packages import DeployedPackages
from worker.plugins.process_host import ProcessHost
from worker.services import Services
from worker.whole_run import tasks as whole_run_tasks
from worker.whole_run.job_output import JobOutput
from worker.whole_run.ray_jobs import JobState

START_SECONDS = 0.5
SCHEMA = """
CREATE TABLE IF NOT EXISTS applications (name TEXT PRIMARY KEY, digest TEXT, since REAL, polls INTEGER);
CREATE TABLE IF NOT EXISTS submissions (name TEXT, digest TEXT, time REAL);
CREATE TABLE IF NOT EXISTS ray_jobs
    (id TEXT PRIMARY KEY, job TEXT, ends INTEGER, polls INTEGER, stopped INTEGER);
"""


class FakeServe:
    """Does what `RayCluster` and the submission do, without Ray."""

    def __init__(self, path: Path, crashes: RequestedCrashes | None = None) -> None:
        self._path = path
        self._crashes = crashes
        with contextlib.closing(self._connect()) as db:
            db.executescript(SCHEMA)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=20, isolation_level=None)

    def rows(self, sql: str, *values: Any) -> list[Any]:
        db = self._connect()
        try:
            return db.execute(sql, values).fetchall()
        finally:
            db.close()

    def submission_count(self, app_name: str) -> int:
        """How often an application was submitted that did not run already."""
        [(count,)] = self.rows("SELECT count(*) FROM submissions WHERE name = ?", app_name)
        return int(count)

    def submit(self, plan: dict[str, Any]) -> dict[str, Any]:
        self._crash_if_requested("submit:before")
        name, digest = plan["app_name"], plan["digest"]
        same = self.rows("SELECT 1 FROM applications WHERE name = ? AND digest = ?", name, digest)
        if not same:
            self._deploy(name, digest)
        self._crash_if_requested("submit:after")
        return {"submitted": not same, "reason": None, "replaced": False, "messages": []}

    def _deploy(self, name: str, digest: str) -> None:
        """Deploy in one transaction, as Serve's controller does: a killed worker has submitted or not.

        Whether it is deployed already is checked before the transaction, as in `serve_submit`, so that two
        workers which submit at the same time count as two submissions.
        """
        with contextlib.closing(self._connect()) as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT INTO submissions VALUES (?, ?, ?)", (name, digest, time.time()))
            db.execute("INSERT OR REPLACE INTO applications VALUES (?, ?, ?, 0)", (name, digest, time.time()))
            db.execute("COMMIT")

    def ray_jobs(self, job: str) -> list[tuple[str, bool]]:
        """The Ray jobs of a run, each with whether it was stopped."""
        found = self.rows("SELECT id, stopped FROM ray_jobs WHERE job = ?", job)
        return [(id, bool(stopped)) for id, stopped in found]

    def state(self, app_name: str, max_age: float = 0.0) -> ServeState:
        count_poll = "UPDATE applications SET polls = polls + 1 WHERE name = ? RETURNING digest, since, polls"
        found = self.rows(count_poll, app_name)
        if not found:
            return ServeState()
        [(digest, since, polls)] = found
        # The first poll never finds it running, however slow the machine is, so that a worker always waits.
        is_running = polls > 1 and time.time() - since > START_SECONDS
        bucket, status = ("running", "RUNNING") if is_running else ("pending", "DEPLOYING")
        return ServeState(True, bucket, status, "", frozenset({digest}))

    def remove(self, app_name: str) -> None:
        self.rows("DELETE FROM applications WHERE name = ?", app_name)

    def put_back(self, app_name: str, failed: str) -> bool:
        return False

    def _crash_if_requested(self, point: str) -> None:
        if self._crashes is not None:
            self._crashes.crash_if_requested(point)


ENDLESS = "endless"
"""The description of a run whose Ray job does not end by itself."""
RESULT = {"did": "it"}


class FakeRayJobs:
    """Does what `RayJobs` does, without Ray: a job that ends does so after two polls."""

    def __init__(self, serve: FakeServe, crashes: RequestedCrashes | None) -> None:
        self._serve = serve
        self._crashes = crashes

    def submit(self, id: str, release: Any, request: Any, *, by_sdk: bool) -> None:
        self._crash_if_requested("submit_job:before")
        ends = request.params.get("description") != ENDLESS
        insert = "INSERT OR IGNORE INTO ray_jobs VALUES (?, ?, ?, 0, 0)"
        self._serve.rows(insert, id, request.job, int(ends))
        self._crash_if_requested("submit_job:after")

    def state(self, id: str) -> JobState | None:
        count_poll = "UPDATE ray_jobs SET polls = polls + 1 WHERE id = ? RETURNING ends, polls, stopped"
        found = self._serve.rows(count_poll, id)
        if not found:
            return None
        [(ends, polls, stopped)] = found
        return JobState("STOPPED" if stopped else "SUCCEEDED" if ends and polls > 2 else "RUNNING")

    def stop(self, id: str) -> bool:
        self._crash_if_requested("stop_job:before")
        self._serve.rows("UPDATE ray_jobs SET stopped = 1 WHERE id = ?", id)
        self._crash_if_requested("stop_job:after")
        return True

    def output(self, id: str) -> JobOutput:
        return JobOutput(result=RESULT)

    def _crash_if_requested(self, point: str) -> None:
        if self._crashes is not None:
            self._crashes.crash_if_requested(point)


class FakeServeHost(ProcessHost):
    """Runs plugin code in processes of its own, and submits to the fake."""

    def __init__(self, serve: FakeServe) -> None:
        super().__init__()
        self._serve = serve

    def call(self, release: Any, request: Any, operation: str, payload: Any) -> Any:
        if operation == "submit":
            return self._serve.submit(payload)
        return super().call(release, request, operation, payload)


def install_fake_serve(serve: FakeServe, crashes: RequestedCrashes | None) -> None:
    """Make this process deploy to the fake, and submit its jobs there."""
    jobs = FakeRayJobs(serve, crashes)
    setattr(whole_run_tasks, "_jobs", lambda: jobs)  # noqa: B010 - a function of the module
    setattr(deploy_tasks, "_cluster", lambda: serve)  # noqa: B010 - a function of the module
    setattr(Services, "host", FakeServeHost(serve))  # noqa: B010
    setattr(DeployedPackages, "pin", lambda _self: None)  # noqa: B010
