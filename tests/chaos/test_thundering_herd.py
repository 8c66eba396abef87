"""Many runs need the same pre-processor, which is not deployed, at the same moment."""

import pytest

from tests.chaos.platform_harness import PlatformHarness
from worker.sandbox import wait_for

RUNS = 200


@pytest.mark.chaos
@pytest.mark.timeout(110)
def test_two_hundred_runs_dispatch_their_pre_processor_once(harness: PlatformHarness) -> None:
    with harness.fleet() as fleet:
        # Given 200 messages in the queue, and a pre-processor that is not deployed
        code = fleet.new_pre_processor()
        project = fleet.new_project(1)
        jobs = [fleet.new_job("echo@1.0.0", "to_task") for _ in range(RUNS)]
        for job in jobs:
            fleet.to_task_by_inference(job, project, code)

        # When three workers start at the same time
        for _ in range(3):
            fleet.start_worker()

        # Then all runs succeed
        wait_for(lambda: all(fleet.has_ended(job) for job in jobs), 90, "the end of every run")
        auditor = fleet.auditor()
        for job in jobs:
            auditor.check_succeeded(job)
        # And the backend was asked for one deployment
        auditor.check_dispatched_once(code)
        assert auditor.result.violations == []
