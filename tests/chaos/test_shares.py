"""A worker that dies gives the slots of its tenant back, also when nobody delivers its messages again."""

import re

import pytest

from tests.chaos.platform_harness import PlatformHarness
from worker.runs.shares.slots import Share, slots_key
from worker.sandbox import wait_for
from worker.sandbox.sandbox import AGENT_ID
from worker.sandbox.seed import SeededProject

VISIBILITY_TIMEOUT_SECONDS = 30.0
"""A dead worker's lock lasts half of it, and more than all of it passes before a run counts as overdue."""
MAX_SECONDS_TO_SLOT = VISIBILITY_TIMEOUT_SECONDS
TENANT = "acme"


@pytest.mark.redis_queues("the message of what waits for a slot is kept with its tenant, and so is not lost")
@pytest.mark.chaos
@pytest.mark.timeout(180)
def test_a_killed_worker_gives_its_tenants_slots_back(harness: PlatformHarness) -> None:
    with harness.fleet_behind_proxy(
        "SYNAPSE_HOST",
        harness.sandbox.backend_url,
        WORKER_VISIBILITY_TIMEOUT_SECONDS=str(VISIBILITY_TIMEOUT_SECONDS),
        WORKER_TENANT_CHUNKS="1",
    ) as (fleet, proxy):

        def publish(project: SeededProject) -> str:
            job = fleet.new_job("echo@1.0.0", "to_task")
            params = {"name": "chaos", "project": project.id, "agent": AGENT_ID}
            params |= {"method": "file", "target_specification_name": "label_1"}
            kwargs = {"job": job, "plugin": "echo@1.0.0", "params": params, "tenant": TENANT}
            fleet.send_task("to_task", "to_task", **kwargs)
            return job

        hangs, waits = fleet.new_project(3), fleet.new_project(3)

        def is_of_hanging(method: str, path: str) -> bool:
            found = re.search(r"/tasks/(\d+)/", path)
            return method == "PUT" and found is not None and int(found[1]) in hangs.tasks

        slots, waiting = (slots_key(Share.CHUNKS, TENANT, what) for what in ("slots", "waiting"))
        with proxy.fault("hang", is_of_hanging):
            # Given a worker that has the only slot of a tenant, and a run of that tenant which waits for it
            worker = fleet.start_worker()
            first = publish(hangs)
            wait_for(lambda: fleet.redis.zcard(slots) == 1, 60, "the first chunk")
            second = publish(waits)
            wait_for(lambda: fleet.redis.zcard(waiting) > 0, 60, "the chunk that waits")

            # When the worker is killed, and its messages are lost with it
            worker.kill()
            fleet.delete_messages()
            successor = fleet.start_worker()
            wait_for(lambda: successor.is_ready, 60, "the next worker")

            # Then the run that waits has the slot, and ends
            assert fleet.wait_for_end(second, MAX_SECONDS_TO_SLOT)["status"] == "SUCCEEDED"
            assert not fleet.has_ended(first)
        # And so does the first one, once it is found overdue
        assert fleet.wait_for_end(first, 90)["status"] == "SUCCEEDED"
        wait_for(lambda: not fleet.redis.exists(slots, waiting), 30, "the end of all slots")
