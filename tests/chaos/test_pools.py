"""One worker for each queue, as in the Procfile: one of them may be absent while the others work."""

import time

import pytest

from tests.chaos.platform_harness import VISIBILITY_TIMEOUT_SECONDS, PlatformHarness
from worker.sandbox import wait_for

ABSENCE_SECONDS = 2.5 * VISIBILITY_TIMEOUT_SECONDS
"""Longer than the timeout of a dispatch without any reply."""


@pytest.mark.chaos
@pytest.mark.timeout(120)
def test_a_dispatch_is_not_repeated_while_deploy_has_no_workers(harness: PlatformHarness) -> None:
    with harness.fleet() as fleet:
        # Given no worker that reads `deploy`, and a run whose worker crashes before it stores its dispatch
        code, project = fleet.new_pre_processor(), fleet.new_project(5)
        job = fleet.new_job("echo@1.0.0", "to_task")
        fleet.to_task_by_inference(job, project, code)
        fleet.request_crash("run_plugin:after", code)
        fleet.start_worker(queues="to_task,annotate,control")
        wait_for(lambda: fleet.crash("run_plugin:after", code) is not None, 30, "the crash")

        # When other workers poll for longer than that timeout
        fleet.start_worker(queues="to_task,annotate,control", CHAOS_CRASHES="")
        end = time.monotonic() + ABSENCE_SECONDS
        wait_for(
            lambda: time.monotonic() > end or fleet.dispatch_count(code) > 1, ABSENCE_SECONDS + 5, "time"
        )
        assert fleet.queues.waiting_count("deploy") == 1
        fleet.start_worker(queues="deploy", CHAOS_CRASHES="")

        # Then the first deployment is the only one, and the run succeeds
        assert fleet.wait_for_end(job, 30)["status"] == "SUCCEEDED"
        auditor = fleet.auditor()
        auditor.check_dispatched_once(code)
        assert auditor.result.violations == []
