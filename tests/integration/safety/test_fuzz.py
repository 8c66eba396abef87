"""A worker survives hundreds of generated messages, keeps each one that it rejects, and goes on working."""

import json
import os
import random
import warnings
from typing import Any

import pytest
from celery.local import Proxy
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import NonInteractiveExampleWarning

from shared.channels import job_key
from tests.integration.broker.broker_harness import element
from tests.integration.safety.proxied_harness import ProxiedHarness
from tests.unit.safety.messages import messages, spoilt_headers, step_arguments
from worker.blame import RejectedMessageError
from worker.deploy import tasks as deploy
from worker.pre_processor import tasks as pre_processor
from worker.to_task import tasks as to_task
from worker.workflow import control
from worker.workflow.validation import arguments_of, parse_message, readable_job

MESSAGE_COUNT = int(os.environ.get("FUZZ_EXAMPLES", "250"))
QUEUES = {"deploy": "deploy", "to_task": "to_task", "tail_logs": "logs", "stop": "control"}
MODULES = (control, deploy, pre_processor, to_task)
TASKS = [each for module in MODULES for each in vars(module).values() if issubclass(type(each), Proxy)]
STEPS = {task.name: model for task in TASKS if (model := arguments_of(task.run)) is not None}
ODD_JOBS = st.sampled_from(["{}", "%s", "a/b", ".", "..", "", None, True, 1.5, [], {}, "ü", -1, 10**200])


def examples_of(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
    """`count` examples of a strategy, the same ones each time."""
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


def test_no_message_stalls_a_worker(harness: ProxiedHarness) -> None:
    # Given generated messages, most of them for jobs that the backend has
    jobs = [harness.new_job() for _ in range(20)]
    known = st.sampled_from([*jobs, *map(int, jobs)])
    fuzzed = examples_of(messages(known | known | ODD_JOBS, "echo@1.0.0"), MESSAGE_COUNT)
    worker, before = harness.worker, len(harness.dead_letters())
    assert worker is not None
    pids = worker.pids()

    # When they are published, and after them elements that are no messages
    rng = random.Random(1)
    for kwargs in fuzzed:
        task = rng.choice(list(QUEUES))
        harness.send_task(task, QUEUES[task], kwargs)
    for element_text in ("", "{}", "[]", "null", '{"body": "%%%"}', '"\\ud800"', "\x00", "[" * 5000):
        harness.queues.put("to_task", element_text)
    harness.wait_for(harness.has_no_messages, "all messages are acknowledged", 60)

    # Then each one was accepted (Redis has a record of its run or stop) or is a dead letter
    letters = harness.dead_letters()[before:]
    kept = [json.loads(letter["body"])[1] for letter in letters if letter["task"] in QUEUES]
    as_sent = [json.loads(json.dumps(kwargs)) for kwargs in fuzzed]
    lost = [kwargs for kwargs in as_sent if kwargs not in kept and not _was_accepted(harness, kwargs)]
    assert lost == []
    assert len(letters) - len(kept) == 8
    # And the worker's processes are the same, no task of it raised, and it runs a valid message
    assert worker.alive
    assert worker.pids() == pids
    assert "raised unexpected" not in harness.worker_log()
    project = harness.new_project(3)
    assert harness.wait_for_end(harness.to_task(project))["status"] == "SUCCEEDED"
    assert harness.write_counts(project) == [1, 1, 1]


def _was_accepted(harness: ProxiedHarness, kwargs: dict[str, Any]) -> bool:
    job = readable_job(kwargs)
    return job is not None and bool(harness.redis.keys(f"{job_key(job)}*"))


def test_no_message_of_a_step_stalls_a_worker(harness: ProxiedHarness) -> None:
    # Given generated messages for internal steps
    jobs = st.sampled_from([*(harness.new_job() for _ in range(20)), "unknown"]) | ODD_JOBS
    fuzzed = examples_of(st.tuples(st.sampled_from(sorted(STEPS)), step_arguments(jobs)), MESSAGE_COUNT)
    before = len(harness.dead_letters())

    # When they are published
    for task, kwargs in fuzzed:
        harness.send_task(task, "to_task", kwargs)
    harness.wait_for(harness.has_no_messages, "all messages are acknowledged", 60)

    # Then each one with wrong arguments is a dead letter, and no task raised
    wrong = [kwargs for task, kwargs in fuzzed if _is_wrong(task, json.loads(json.dumps(kwargs)))]
    kept = [json.loads(letter["body"])[1] for letter in harness.dead_letters()[before:]]
    assert len(wrong) > MESSAGE_COUNT / 2
    assert sorted(map(json.dumps, kept)) == sorted(map(json.dumps, wrong))
    assert "raised unexpected" not in harness.worker_log()
    assert harness.wait_for_end(harness.to_task(harness.new_project(3)))["status"] == "SUCCEEDED"


def _is_wrong(task: str, kwargs: dict[str, Any]) -> bool:
    try:
        parse_message(STEPS[task], (), kwargs)
    except RejectedMessageError:
        return True
    return False


@pytest.mark.redis_queues("elements of a list with headers that no client of RabbitMQ can write")
def test_no_header_stalls_a_worker(harness: ProxiedHarness) -> None:
    # Given valid messages with generated headers, each for another job
    worker, before = harness.worker, len(harness.dead_letters())
    assert worker is not None
    generated = examples_of(spoilt_headers(), MESSAGE_COUNT)
    jobs = [f"headers-{number}" for number in range(MESSAGE_COUNT)]

    # When they are published
    for job, headers in zip(jobs, generated, strict=True):
        body = [[], {"job": job}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
        harness.redis.lpush("control", json.dumps(element(body, headers={"task": "stop", **headers})))
    harness.wait_for(harness.has_no_messages, "all messages are acknowledged", 60)

    # Then each one was accepted or is a dead letter
    kept = {letter["body"] for letter in harness.dead_letters()[before:]}
    lost = [
        headers
        for job, headers in zip(jobs, generated, strict=True)
        if not harness.redis.keys(f"{job_key(job)}*") and not any(f'"{job}"' in body for body in kept)
    ]
    assert lost == []
    # And the worker still runs a valid message
    assert worker.alive
    assert harness.wait_for_end(harness.to_task(harness.new_project(3)))["status"] == "SUCCEEDED"
