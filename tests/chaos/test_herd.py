"""Many runs need the same absent pre-processor at the same moment."""

import pytest

from tests.chaos.platform_harness import PlatformHarness
from worker.sandbox import wait_for

RUNS = 200


@pytest.mark.chaos
@pytest.mark.timeout(110)
def test_two_hundred_runs_dispatch_their_pre_processor_once(
    harness: PlatformHarness,
) -> None:
    with harness.site() as site:
        # Given 200 messages that wait for three workers, and a pre-processor that nobody has deployed
        code = site.pre_processor()
        project = site.project(1)
        jobs = [site.new_job("echo@1.0.0", "to_task") for _ in range(RUNS)]
        for job in jobs:
            site.to_task_by_inference(job, project, code)

        # When they come up at once
        for _ in range(3):
            site.worker()

        # Then all runs succeed
        wait_for(lambda: all(site.is_over(job) for job in jobs), 90, "ends")
        auditor = site.auditor()
        for job in jobs:
            auditor.succeeded(job)
        # And the backend was asked for one deployment
        auditor.dispatched_once(code)
        assert auditor.findings.wrong == []
