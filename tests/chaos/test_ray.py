"""A real Ray whose head goes away and is retried, and a driver that is reported to end."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.workflows.conftest import PLUGINS
from tests.integration.workflows.platform import Platform
from worker.sandbox import Sandbox, wait_for

GATE = "Serve deploy capacity check failed: agent unreachable ("


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with Sandbox(tmp_path, plugins_dir=PLUGINS, num_cpus=4) as sandbox:
        worker = sandbox.start_worker(env={"WORKER_VISIBILITY_TIMEOUT_SECONDS": "10"}, concurrency=4)
        yield Platform(sandbox, worker)


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_runs_that_need_ray_wait_or_fail_without_its_head(platform: Platform) -> None:
    # Given a worker that is connected to Ray
    ray = platform.sandbox.ray
    assert ray is not None
    assert platform.end_of(platform.deploy("echo@1.0.0", num_cpus=1))["status"] == "SUCCEEDED"

    # When Ray's head is gone, and work comes
    ray.stop()
    project = platform.project(20)
    job, deploy = platform.to_task_by_file(project), platform.deploy("echo@2.0.0", num_cpus=1)
    rejected = platform.deploy("nobody@1.0.0")
    begun = time.monotonic()
    # Then what needs no Ray goes on
    assert platform.end_of(rejected, 20)["status"] == "FAILED"
    print(f"a run without Ray ended after {time.monotonic() - begun:.1f} s")
    time.sleep(8)
    ray.launch()
    ray.await_ready()
    back = time.monotonic()

    # And what needs it ends when it is back
    assert platform.end_of(job, 90)["status"] == "SUCCEEDED"
    assert set(platform.writes(project)) == {1}
    end = platform.end_of(deploy, 90)
    print(f"all over {time.monotonic() - back:.1f} s after Ray was back: {end['status']} {end['result']}")
    assert end["status"] == "SUCCEEDED" or end["result"]["error"].startswith(GATE)


@pytest.mark.chaos
@pytest.mark.timeout(200)
def test_a_worker_with_a_driver_of_ray_ends_in_order(platform: Platform) -> None:
    # Given a worker that has deployed and annotated, so that it has a driver and an event loop
    assert platform.end_of(platform.deploy("echo@1.0.0", num_cpus=1))["status"] == "SUCCEEDED"
    assert platform.end_of(platform.to_task_by_file(platform.project(5)))["status"] == "SUCCEEDED"

    # When it is reported to end, it does so within seconds
    begun = time.monotonic()
    os.kill(platform.worker.pid, signal.SIGTERM)
    wait_for(lambda: not platform.worker.alive, 15, "the worker's end")
    print(f"SIGTERM with a Ray driver: {time.monotonic() - begun:.1f} s")
    tail = platform.worker.tail(15)
    assert "Traceback" not in tail
    assert "Fatal Python error" not in tail
