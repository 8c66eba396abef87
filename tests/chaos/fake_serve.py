"""Ray Serve in one SQLite file, for test workers: it survives them, and counts what was asked of it."""

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import Any

from tests.chaos.crash_injection import Deaths
from worker.deploy import tasks as deploy_tasks
from worker.deploy.cluster import ServeState
from worker.deploy.deployments import DeployedPackages
from worker.plugins.process_host import ProcessHost
from worker.services import Services

SECONDS_TO_START = 0.5
SCHEMA = """
CREATE TABLE IF NOT EXISTS applications (name TEXT PRIMARY KEY, digest TEXT, since REAL, looks INTEGER);
CREATE TABLE IF NOT EXISTS submissions (name TEXT, digest TEXT, time REAL);
"""


class FakeServe:
    """What `RayCluster` and the submission do, without a Ray."""

    def __init__(self, path: Path, deaths: Deaths | None = None) -> None:
        self._path = path
        self._deaths = deaths
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

    def submit(self, plan: dict[str, Any]) -> dict[str, Any]:
        self._die("submit:before")
        name, digest = plan["app_name"], plan["digest"]
        same = self.rows("SELECT 1 FROM applications WHERE name = ? AND digest = ?", name, digest)
        if not same:
            self._take(name, digest)
        self._die("submit:after")
        return {"submitted": not same, "reason": None, "replaced": False, "messages": []}

    def _take(self, name: str, digest: str) -> None:
        """In one go, as Serve's controller takes it: a killed worker has submitted, or it has not.

        The look before is apart, as it is in `serve_submit`: two who race are counted.
        """
        with contextlib.closing(self._connect()) as db:
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT INTO submissions VALUES (?, ?, ?)", (name, digest, time.time()))
            db.execute("INSERT OR REPLACE INTO applications VALUES (?, ?, ?, 0)", (name, digest, time.time()))
            db.execute("COMMIT")

    def state(self, app_name: str) -> ServeState:
        looked = "UPDATE applications SET looks = looks + 1 WHERE name = ? RETURNING digest, since, looks"
        found = self.rows(looked, app_name)
        if not found:
            return ServeState()
        [(digest, since, looks)] = found
        # However slow the machine is, somebody has to wait for it.
        runs = looks > 1 and time.time() - since > SECONDS_TO_START
        bucket, status = ("running", "RUNNING") if runs else ("pending", "DEPLOYING")
        return ServeState(True, bucket, status, "", frozenset({digest}))

    def remove(self, app_name: str) -> None:
        self.rows("DELETE FROM applications WHERE name = ?", app_name)

    def _die(self, point: str) -> None:
        if self._deaths is not None:
            self._deaths.at(point)


class Host(ProcessHost):
    """Plugin code in this process, except what would need a Ray."""

    def __init__(self, serve: FakeServe) -> None:
        super().__init__()
        self._serve = serve

    def call(self, release: Any, request: Any, operation: str, payload: Any) -> Any:
        if operation == "submit":
            return self._serve.submit(payload)
        return super().call(release, request, operation, payload)


def install(serve: FakeServe) -> None:
    """Let this process's deployments go there."""
    setattr(deploy_tasks, "_cluster", lambda: serve)  # noqa: B010 - a function of the module
    setattr(Services, "host", Host(serve))  # noqa: B010
    setattr(DeployedPackages, "pin", lambda _self: None)  # noqa: B010
