"""A worker survives hundreds of messages of any kind, keeps each that it does not take, and works on."""

import json
import os
import random
import warnings
from typing import Any

from celery.local import Proxy
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import NonInteractiveExampleWarning

from shared.channels import job_key
from tests.integration.broker.broker_site import element
from tests.integration.safety.site import Site
from tests.unit.safety.messages import messages, spoilt_headers, step_arguments
from worker.blame import RejectedMessageError
from worker.deploy import tasks as deploy
from worker.pre_processor import tasks as pre_processor
from worker.to_task import tasks as to_task
from worker.workflow import control
from worker.workflow.validation import arguments_of, parse_message, readable_job

COUNT = int(os.environ.get("FUZZ_EXAMPLES", "250"))
QUEUES = {"deploy": "deploy", "to_task": "to_task", "tail_logs": "logs", "stop": "control"}
MODULES = (control, deploy, pre_processor, to_task)
TASKS = [each for module in MODULES for each in vars(module).values() if issubclass(type(each), Proxy)]
STEPS = {task.name: model for task in TASKS if (model := arguments_of(task.run)) is not None}
ODD = st.sampled_from(["{}", "%s", "a/b", ".", "..", "", None, True, 1.5, [], {}, "ü", -1, 10**200])


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
    fuzzed = drawn(messages(known | known | ODD, "echo@1.0.0"), COUNT)
    worker, before = site.worker, len(site.letters())
    assert worker is not None
    pids = worker.pids()

    # When they are published, among elements that are no messages at all
    chance = random.Random(1)
    for kwargs in fuzzed:
        task = chance.choice(list(QUEUES))
        site.bare(task, QUEUES[task], kwargs)
    for piece in ("", "{}", "[]", "null", '{"body": "%%%"}', '"\\ud800"', "\x00", "[" * 5000):
        site.redis.lpush("to_task", piece)
    site.wait(site.quiet, "all are read", 60)

    # Then each was accepted (its run was reported, or its stop remembered) or kept
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
    return job is not None and bool(site.redis.keys(f"{job_key(job)}*"))


def test_no_message_of_a_step_stalls_a_worker(site: Site) -> None:
    # Given messages of internal steps from somebody who is no worker
    jobs = st.sampled_from([*(site.new_job() for _ in range(20)), "unknown"]) | ODD
    fuzzed = drawn(st.tuples(st.sampled_from(sorted(STEPS)), step_arguments(jobs)), COUNT)
    before = len(site.letters())

    # When they are published
    for task, kwargs in fuzzed:
        site.bare(task, "to_task", kwargs)
    site.wait(site.quiet, "all are read", 60)

    # Then each whose arguments are not its step's is kept, and no task fails
    wrong = [kwargs for task, kwargs in fuzzed if _is_wrong(task, json.loads(json.dumps(kwargs)))]
    kept = [json.loads(letter["body"])[1] for letter in site.letters()[before:]]
    assert len(wrong) > COUNT / 2
    assert sorted(map(json.dumps, kept)) == sorted(map(json.dumps, wrong))
    assert "raised unexpected" not in site.log()
    assert site.end_of(site.to_task(site.project(3)))["status"] == "SUCCEEDED"


def _is_wrong(task: str, kwargs: dict[str, Any]) -> bool:
    try:
        parse_message(STEPS[task], (), kwargs)
    except RejectedMessageError:
        return True
    return False


def test_no_header_stalls_a_worker(site: Site) -> None:
    # Given good messages with spoilt headers, each of a job of its own
    worker, before = site.worker, len(site.letters())
    assert worker is not None
    spoilt = drawn(spoilt_headers(), COUNT)
    jobs = [f"headers-{number}" for number in range(COUNT)]

    # When they are published
    for job, headers in zip(jobs, spoilt, strict=True):
        body = [[], {"job": job}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
        site.redis.lpush("control", json.dumps(element(body, headers={"task": "stop", **headers})))
    site.wait(site.quiet, "all are read", 60)

    # Then each was done or is kept
    kept = {letter["body"] for letter in site.letters()[before:]}
    lost = [
        headers
        for job, headers in zip(jobs, spoilt, strict=True)
        if not site.redis.keys(f"{job_key(job)}*") and not any(f'"{job}"' in body for body in kept)
    ]
    assert lost == []
    # And the worker works on
    assert worker.alive
    assert site.end_of(site.to_task(site.project(3)))["status"] == "SUCCEEDED"
