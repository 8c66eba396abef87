"""A real Ray whose head is stopped and started again, and the shutdown of a worker with a Ray driver."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.faulty_services import let_fault_last
from tests.harness.brokers import session_broker
from tests.integration.workflows.conftest import PLUGINS
from tests.integration.workflows.ray_harness import RayHarness
from worker.sandbox import Sandbox, wait_for

UNREACHABLE = "Serve deploy capacity check failed: agent unreachable ("
HEAD_DOWN_SECONDS = 8


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[RayHarness]:
    with Sandbox(tmp_path, plugins_dir=PLUGINS, num_cpus=4, broker_url=session_broker.new_url()) as sandbox:
        worker = sandbox.start_worker(env={"WORKER_VISIBILITY_TIMEOUT_SECONDS": "10"}, concurrency=4)
        yield RayHarness(sandbox, worker)


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_runs_that_need_ray_wait_or_fail_without_its_head(harness: RayHarness) -> None:
    # Given a worker that is connected to Ray
    ray = harness.sandbox.ray
    assert ray is not None
    assert harness.wait_for_end(harness.deploy("echo@1.0.0", num_cpus=1))["status"] == "SUCCEEDED"

    # When Ray's head is stopped, and messages arrive
    ray.stop()
    project = harness.new_project(20)
    job, deploy = harness.to_task_by_file(project), harness.deploy("echo@2.0.0", num_cpus=1)
    rejected = harness.deploy("nobody@1.0.0")
    published = time.monotonic()
    # Then a run that needs no Ray ends
    assert harness.wait_for_end(rejected, 20)["status"] == "FAILED"
    print(f"a run without Ray ended after {time.monotonic() - published:.1f} s")
    let_fault_last(HEAD_DOWN_SECONDS)
    ray.launch()
    ray.await_ready()
    restored = time.monotonic()

    # And those that need it end after its restart
    assert harness.wait_for_end(job, 90)["status"] == "SUCCEEDED"
    assert set(harness.write_counts(project)) == {1}
    end = harness.wait_for_end(deploy, 90)
    print(f"all ended {time.monotonic() - restored:.1f} s after the restart: {end['status']} {end['result']}")
    assert end["status"] == "SUCCEEDED" or end["result"]["error"].startswith(UNREACHABLE)


@pytest.mark.chaos
@pytest.mark.timeout(200)
def test_a_worker_with_a_ray_driver_shuts_down_cleanly(harness: RayHarness) -> None:
    # Given a worker that has deployed and annotated, so that it has a Ray driver and an event loop
    assert harness.wait_for_end(harness.deploy("echo@1.0.0", num_cpus=1))["status"] == "SUCCEEDED"
    assert harness.wait_for_end(harness.to_task_by_file(harness.new_project(5)))["status"] == "SUCCEEDED"

    # When it gets SIGTERM, it ends within seconds
    terminated = time.monotonic()
    os.kill(harness.worker.pid, signal.SIGTERM)
    wait_for(lambda: not harness.worker.alive, 15, "the worker's end")
    print(f"SIGTERM with a Ray driver: {time.monotonic() - terminated:.1f} s")
    tail = harness.worker.tail(15)
    assert "Traceback" not in tail
    assert "Fatal Python error" not in tail
