"""Old and new workers consume the same queues during a rolling upgrade."""

import json

from tests.integration.broker.broker_site import Site, element
from worker.runs.publisher import STEP_HEADER


def test_step_of_a_newer_release_waits_for_a_newer_worker(site: Site) -> None:
    # Given a worker without the step, which fetches its message
    old = site.worker()
    headers = {"task": "step.of_a_newer_release", STEP_HEADER: True}
    site.redis.lpush("first", json.dumps(element(body=[[], {"value": "7"}, {}], headers=headers)))
    site.wait(lambda: "step of a newer release requeued" in old.tail(100), 5, "the old worker has fetched it")
    assert site.held() + site.redis.llen("first") == 1

    # When a newer worker comes up
    site.worker(newer=True)

    # Then that one carries it out, once, and no worker has called it a dead letter
    site.wait(lambda: site.done() == ["7"], 30, "the step has run")
    site.wait(site.quiet, 10, "the message is acknowledged")
    assert site.letters() == []
