"""SIGTERM: what runs is finished, what waits is another worker's within seconds."""

import signal
import time

import pytest

from tests.chaos.faulty_services import FaultyProxy
from tests.chaos.platform_harness import VISIBILITY_TIMEOUT, PlatformHarness
from worker.sandbox import wait_for


@pytest.mark.timeout(60)
def test_a_worker_that_is_scaled_in_hands_its_runs_over_at_once(harness: PlatformHarness) -> None:
    proxy = FaultyProxy(harness.sandbox.backend_url)
    with harness.site(SYNAPSE_HOST=proxy.url, WORKER_VISIBILITY_TIMEOUT_SECONDS="60") as site:
        try:
            # Given a worker whose every thread writes a task, with deployments that wait in its memory
            first = site.worker(concurrency=4)
            deploys = []
            for _ in range(6):
                plugin = harness.plugin(harness.new_code())
                deploys.append(site.new_job(plugin, "deployment"))
            projects = [site.project(40) for _ in range(3)]
            jobs = [site.new_job("echo@1.0.0", "to_task") for _ in projects]
            with proxy.slowed(0.7, lambda method, _path: method == "PUT"):
                for deploy in deploys:
                    row = site.state.job(int(deploy))
                    assert row is not None
                    site.deploy(deploy, row["plugin"])
                for job, project in zip(jobs, projects, strict=True):
                    site.to_task_by_file(job, project)
                wait_for(lambda: any(method == "PUT" for _, method, _ in proxy.server.received), 20, "writes")

                # When it is reported to end, and another one comes up
                reported = time.time()
                first.signal(signal.SIGTERM)
                second = site.worker()
                wait_for(lambda: not first.alive, VISIBILITY_TIMEOUT, "end of the first")
            ended = time.time() - reported

            # Then all runs end long before the visibility timeout
            for job in (*jobs, *deploys):
                site.end_of(job, 15)
            print(f"ended {ended:.1f} s after SIGTERM, all runs {time.time() - reported:.1f} s after")
            assert time.time() - reported < 20
            # And no task is written twice, for the first one finished what it had begun
            auditor = site.auditor()
            for job, project in zip(jobs, projects, strict=True):
                auditor.succeeded(job)
                auditor.tasks(job, project)
            for job in deploys:
                auditor.succeeded(job)
                auditor.deployment(job)
            assert auditor.findings.wrong == []
            assert second.alive
            assert "Traceback" not in first.log.read_text()
        finally:
            proxy.close()
