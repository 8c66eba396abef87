"""Runs of every kind need no more rights in Redis than docs/redis.md grants."""

from random import Random

import pytest

from tests.chaos.mixed_runs import MixedRuns
from tests.chaos.platform_harness import PlatformHarness
from tests.harness.least_rights import PASSWORD, USER, create_user, denied, documented_rules
from worker.sandbox import wait_for


@pytest.mark.chaos
@pytest.mark.timeout(200)
def test_runs_need_the_documented_rights_alone(harness: PlatformHarness) -> None:
    with harness.fleet() as fleet:
        # Given a worker whose user has the documented rights
        fleet.redis.acl_log_reset()
        create_user(fleet.redis, *documented_rules(int(fleet.url.rpartition("/")[2])))
        worker = fleet.start_worker(REDIS_URL=fleet.url.replace("//", f"//{USER}:{PASSWORD}@"))

        # When it has carried out runs of every kind
        runs = MixedRuns(fleet, Random(1))
        runs.prepare(12)
        runs.publish(within_seconds=1.0)
        runs.wait_for_ends(60)

        # Then Redis denied it nothing
        assert runs.audit().violations == []
        wait_for(lambda: not fleet.unfinished(), 30, "the last acknowledgement")
        assert denied(fleet.redis) == set()
        assert worker.alive
