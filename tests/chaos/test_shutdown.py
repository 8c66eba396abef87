"""SIGTERM: what a worker has begun it finishes; what waits is another worker's within seconds."""

import contextlib
import signal
import time

import pytest

from tests.chaos.platform_harness import VISIBILITY_TIMEOUT_SECONDS, PlatformHarness
from worker.sandbox import wait_for


@pytest.mark.timeout(60)
def test_a_worker_that_is_scaled_in_requeues_its_runs_at_once(harness: PlatformHarness) -> None:
    with contextlib.ExitStack() as stack:
        backend_url = harness.sandbox.backend_url
        settings = {"WORKER_VISIBILITY_TIMEOUT_SECONDS": "60"}
        fleet, proxy = stack.enter_context(
            harness.fleet_behind_proxy("SYNAPSE_HOST", backend_url, **settings)
        )
        # Given a worker whose every thread writes a task, with deployments that it has prefetched
        first = fleet.start_worker(concurrency=4)
        deploys = [fleet.new_job(harness.new_plugin(), "deployment") for _ in range(6)]
        projects = [fleet.new_project(40) for _ in range(3)]
        jobs = [fleet.new_job("echo@1.0.0", "to_task") for _ in projects]
        with proxy.delay(0.7, lambda method, _path: method == "PUT"):
            for deploy in deploys:
                row = fleet.state.job(int(deploy))
                assert row is not None
                fleet.deploy(deploy, row["plugin"])
            for job, project in zip(jobs, projects, strict=True):
                fleet.to_task_by_file(job, project)
            wait_for(lambda: any(method == "PUT" for _, method, _ in proxy.server.received), 20, "writes")

            # When it gets SIGTERM, and another one starts
            terminated = time.time()
            first.signal(signal.SIGTERM)
            second = fleet.start_worker()
            wait_for(lambda: not first.alive, VISIBILITY_TIMEOUT_SECONDS, "end of the first")
        end_seconds = time.time() - terminated

        # Then all runs end long before the visibility timeout
        for job in (*jobs, *deploys):
            fleet.wait_for_end(job, 15)
        print(f"ended {end_seconds:.1f} s after SIGTERM, all runs {time.time() - terminated:.1f} s after it")
        assert time.time() - terminated < 20
        # And no task is written twice, because the first worker finished what it had begun
        auditor = fleet.auditor()
        for job, project in zip(jobs, projects, strict=True):
            auditor.check_succeeded(job)
            auditor.check_tasks(job, project)
        for job in deploys:
            auditor.check_succeeded(job)
            auditor.check_deployment(job)
        assert auditor.result.violations == []
        assert second.alive
        assert "Traceback" not in first.log.read_text()
