"""A pytest plugin for the tests of celery and kombu: their transport, and their outcomes in a file.

The environment says what `tests.foreign` wants: FOREIGN_TRANSPORT, FOREIGN_POOL, FOREIGN_OUTCOMES.
"""

import json
import os
from pathlib import Path
from typing import Any

import kombu
import pytest

OUTCOMES = Path(os.environ["FOREIGN_OUTCOMES"])
FIXTURES: dict[str, Any] = {}
"""Values that win over the fixtures of celery's conftest, which are nearer to its tests than a plugin's."""

if pool := os.environ.get("FOREIGN_POOL"):
    FIXTURES["celery_worker_pool"] = pool

if os.environ["FOREIGN_TRANSPORT"] == "worker":
    from worker.broker import Connection

    # Before a test module imports it from here.
    kombu.Connection = Connection
    FIXTURES["celery_parameters"] = {"amqp": "worker.broker:AMQP"}


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marks of plugins that are not installed; the runner repeats tests that differ by itself."""
    for mark in ("env", "flaky", "order"):
        config.addinivalue_line("markers", f"{mark}: of a plugin that is not installed")


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: Any, request: Any) -> Any:
    """Set up the fixtures whose values are ours."""
    value = FIXTURES.get(fixturedef.argname)
    if value is not None:
        fixturedef.cached_result = (value, fixturedef.cache_key(request), None)
    return value


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record the outcome of a test, and a failure before or after it."""
    if report.when == "call" or not report.passed:
        _record(report, "xfailed" if hasattr(report, "wasxfail") else report.outcome)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Record a module that cannot be imported, or that is skipped as a whole."""
    if not report.passed:
        _record(report, report.outcome)


def _record(report: pytest.TestReport | pytest.CollectReport, outcome: str) -> None:
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = str(crash.message if crash is not None else report.longrepr or "").splitlines()
    record = {"name": report.nodeid, "outcome": outcome, "message": lines[0] if lines else ""}
    # At once, so that a process that dies leaves what it knows.
    with OUTCOMES.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
