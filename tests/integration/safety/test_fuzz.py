"""A worker survives hundreds of messages of any kind, keeps each that it does not take, and works on."""

import json
import random
import warnings
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import NonInteractiveExampleWarning

from shared.channels import job_key
from tests.integration.safety.site import Site
from tests.unit.safety.messages import messages
from worker.workflow.reading import readable_job

COUNT = 250
QUEUES = {"deploy": "deploy", "to_task": "to_task", "stop": "control"}


def drawn(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """Examples, the same ones each time."""
    found: list[Any] = []

    @seed(1)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def draw(value: Any) -> None:
        found.append(value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonInteractiveExampleWarning)
        draw()
    return found


def test_no_message_stalls_a_worker(site: Site) -> None:
    # Given some hundred messages with jobs that the backend has and others
    jobs = [site.new_job() for _ in range(20)]
    known = st.sampled_from([*jobs, *map(int, jobs)])
    odd = st.sampled_from(["{}", "%s", "a/b", ".", "..", "", None, True, 1.5, [], {}, "ü", -1, 10**200])
    fuzzed = drawn(messages(known | known | odd, "echo@1.0.0"), COUNT)
    worker, before = site.worker, len(site.letters())
    assert worker is not None
    pids = worker.pids()

    # When they are published, among elements that are no messages at all
    chance = random.Random(1)
    for kwargs in fuzzed:
        task = chance.choice(list(QUEUES))
        site.bare(task, QUEUES[task], kwargs)
    for element in ("", "{}", "[]", "null", '{"body": "%%%"}', '"\\ud800"', "\x00", "[" * 5000):
        site.redis.lpush("to_task", element)
    site.wait(site.quiet, "all are read", 60)

    # Then each was taken in (its run was told, or its stop remembered) or kept
    letters = site.letters()[before:]
    kept = [json.loads(letter["body"])[1] for letter in letters if letter["task"] in QUEUES]
    as_sent = [json.loads(json.dumps(kwargs)) for kwargs in fuzzed]
    lost = [kwargs for kwargs in as_sent if kwargs not in kept and not _was_taken(site, kwargs)]
    assert lost == []
    assert len(letters) - len(kept) == 8
    # And the worker is the same as before, has never failed a task, and runs a good message
    assert worker.alive
    assert worker.pids() == pids
    assert "raised unexpected" not in site.log()
    project = site.project(3)
    assert site.end_of(site.to_task(project))["status"] == "SUCCEEDED"
    assert site.writes(project) == [1, 1, 1]


def _was_taken(site: Site, kwargs: dict[str, Any]) -> bool:
    job = readable_job(kwargs)
    return job is not None and bool(site.redis.exists(job_key(job), f"{job_key(job)}:stop"))
