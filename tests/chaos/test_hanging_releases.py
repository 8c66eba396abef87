"""Releases that hang hold no more threads than their share, and a stop is heard beside them."""

import time
from pathlib import Path

import pytest

from tests.chaos.platform_harness import Fleet, PlatformHarness
from worker.sandbox import wait_for

HANG_SECONDS = 120
MAX_STOP_SECONDS = 5.0
"""Two on a quiet machine."""


def hanging_release(harness: PlatformHarness, folder: Path) -> str:
    """A release that hangs while it is loaded; each loading process leaves a file in `folder`."""
    folder.mkdir()
    return harness.new_plugin(
        prepended=(
            "import pathlib, time, uuid\n"
            f"pathlib.Path({str(folder)!r}, uuid.uuid4().hex).touch()\n"
            f"time.sleep({HANG_SECONDS})\n"
        )
    )


def is_at_step(fleet: Fleet, job: str, step: str) -> bool:
    return bool(fleet.redis.hget(f"synapse:jobs:{{{job}}}", "step") == step)


def stop_within(fleet: Fleet, job: str, seconds: float) -> None:
    published = time.monotonic()
    fleet.stop(job)
    wait_for(lambda: fleet.has_ended(job), seconds + 10, f"stop of job {job}")
    took = time.monotonic() - published
    print(f"a stop was heard after {took:.2f} s")
    assert took < seconds
    assert fleet.wait_for_end(job)["status"] == "STOPPED"


@pytest.mark.timeout(90)
@pytest.mark.parametrize(
    ("pool", "size"),
    [
        ("threads", 2),
        ("threads", 4),
        pytest.param("threads", 1, marks=pytest.mark.chaos),
        pytest.param("threads", 8, marks=pytest.mark.chaos),
        ("prefork", 2),
        pytest.param("prefork", 4, marks=pytest.mark.chaos),
    ],
)
def test_a_stop_is_heard_while_releases_hang_at_load(
    harness: PlatformHarness, tmp_path: Path, pool: str, size: int
) -> None:
    with harness.fleet() as fleet:
        # Given more runs of two releases that hang while they are loaded than the worker has threads
        fleet.start_worker(concurrency=size, pool=pool)
        project = fleet.new_project(2)
        loads = [tmp_path / name for name in ("one", "other")]
        jobs = []
        for folder in loads:
            release = hanging_release(harness, folder)
            for _ in range(size + 1):
                jobs.append(fleet.new_job(release, "to_task"))
                fleet.to_task_by_file(jobs[-1], project, release)
        wait_for(lambda: any(any(folder.iterdir()) for folder in loads), 30, "a release is being loaded")
        wait_for(
            lambda: all(is_at_step(fleet, job, "to_task.prepare") for job in jobs), 30, "all runs have begun"
        )

        # When they are stopped one after the other, then each stop is heard
        for job in (jobs[0], jobs[-1], *jobs[1:-1]):
            stop_within(fleet, job, MAX_STOP_SECONDS)
