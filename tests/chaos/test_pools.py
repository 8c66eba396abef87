"""A pool a queue, as the Procfile runs them: one of them may be away while the others work."""

import time

import pytest

from tests.chaos.platform_harness import VISIBILITY_TIMEOUT, PlatformHarness
from worker.sandbox import wait_for

AWAY = 2.5 * VISIBILITY_TIMEOUT
"""Seconds: longer than a dispatch of which nobody hears is waited for."""


@pytest.mark.chaos
@pytest.mark.timeout(120)
def test_a_dispatch_is_not_repeated_while_deploy_has_no_workers(
    harness: PlatformHarness,
) -> None:
    with harness.site() as site:
        # Given a run whose dispatcher dies with the answer in its hands, and no worker that reads `deploy`
        code, project = site.pre_processor(), site.project(5)
        job = site.new_job("echo@1.0.0", "to_task")
        site.to_task_by_inference(job, project, code)
        site.fatal("run_plugin:after", code)
        site.worker(queues="to_task,annotate,control")
        wait_for(lambda: site.death("run_plugin:after", code) is not None, 30, "the dispatcher's death")

        # When others poll for longer than a silent dispatch is waited for
        site.worker(queues="to_task,annotate,control", CHAOS_DEATHS="")
        back = time.monotonic() + AWAY
        wait_for(lambda: time.monotonic() > back or site.dispatches(code) > 1, AWAY + 5, "time")
        assert site.redis.llen("deploy") == 1
        site.worker(queues="deploy", CHAOS_DEATHS="")

        # Then the first deployment is the only one, and the run ends well
        assert site.end_of(job, 30)["status"] == "SUCCEEDED"
        auditor = site.auditor()
        auditor.dispatched_once(code)
        assert auditor.findings.wrong == []
