"""A dependency that hangs slows the runs that need it, and no others."""

import time

import pytest

from tests.chaos.platform_harness import PlatformHarness, Site
from worker.sandbox import wait_for

HANGING = 50


@pytest.mark.chaos
@pytest.mark.timeout(110)
def test_fifty_deploys_on_a_hanging_agent_delay_no_to_task(harness: PlatformHarness) -> None:
    with harness.site(WORKER_ANNOTATE_CHUNK="50") as site:
        # Given a worker of four threads, and the time that a to_task takes on it
        worker = site.worker(concurrency=4)
        _to_task_seconds(site)
        usual = sorted(_to_task_seconds(site) for _ in range(3))[1]

        # When the agent hangs on 50 deploys
        harness.agent.hangs.set()
        try:
            deploys = []
            for _ in range(HANGING):
                plugin = harness.plugin(harness.new_code())
                deploys.append(site.new_job(plugin, "deployment"))
                site.deploy(deploys[-1], plugin)
            asked = len(harness.agent.server.received)
            wait_for(lambda: len(harness.agent.server.received) > asked, 20, "a deploy hangs")
            wait_for(lambda: not site.redis.llen("deploy"), 20, "all deploys are under way")
            slowed = sorted(_to_task_seconds(site) for _ in range(3))
        finally:
            harness.agent.relieve()

        # Then a to_task takes at most twice as long
        print(f"usually {usual:.2f} s, beside hanging deploys {slowed}")
        assert slowed[1] <= 2 * usual
        assert worker.alive
        # And every deploy ends: those that were asked in vain with the gate's message, others well
        wait_for(lambda: all(site.is_over(job) for job in deploys), 60, "ends of the deploys")
        auditor = site.auditor()
        for job in deploys:
            row = auditor.job(job)
            if row["status"] != "SUCCEEDED":
                assert row["result"]["error"].startswith(
                    "Serve deploy capacity check failed: agent unreachable (Client"
                )
        assert auditor.findings.wrong == []


def _to_task_seconds(site: Site) -> float:
    job, project = site.new_job("echo@1.0.0", "to_task"), site.project(200)
    begun = time.monotonic()
    site.to_task_by_file(job, project)
    assert site.end_of(job, 60)["status"] == "SUCCEEDED"
    return time.monotonic() - begun
