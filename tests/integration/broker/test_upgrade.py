"""Old and new workers consume the same queues during a rolling upgrade."""

import json

from tests.integration.broker.broker_harness import BrokerHarness, element
from worker.runs.publisher import STEP_HEADER


def test_step_of_a_newer_release_waits_for_a_newer_worker(broker: BrokerHarness) -> None:
    # Given a worker without the step, which fetches its message
    old = broker.start_worker()
    headers = {"task": "step.of_a_newer_release", STEP_HEADER: True}
    broker.redis.lpush("first", json.dumps(element(body=[[], {"value": "7"}, {}], headers=headers)))
    broker.wait_for(
        lambda: "step of a newer release requeued" in old.tail(100), 5, "the old worker's requeue"
    )
    broker.wait_for(lambda: broker.delayed_count() == 1 or broker.redis.llen("first"), 5, "the message")
    assert broker.unacked_count() == 0

    # When a newer worker starts
    broker.start_worker(newer_release=True)

    # Then the newer worker runs it once, and no worker makes it a dead letter
    broker.wait_for(lambda: broker.ended() == ["7"], 30, "the end of the step")
    broker.wait_for(broker.is_empty, 10, "the acknowledgement")
    assert broker.dead_letters() == []
