"""`stop` ends a run at any step within two seconds, and nothing begins after that."""

import json
import time

import pytest

from shared import StopMessage, ToTaskMessage
from tests.integration.safety.proxied_harness import ProxiedHarness
from tests.integration.safety.recording_proxy import Response
from worker.runs.keys import heartbeats_key, stop_key

MAX_STOP_SECONDS = 2.0


def stop_within(harness: ProxiedHarness, job: str, seconds: float) -> None:
    published = time.monotonic()
    harness.stop(job)
    harness.wait_for(lambda: harness.job(job)["status"] == "STOPPED", f"stop of job {job}", seconds + 5)
    assert time.monotonic() - published < seconds
    assert harness.job(job)["result"]["error"] == "stopped"


def test_a_stop_while_annotating_lets_no_annotation_begin(harness: ProxiedHarness) -> None:
    # Given a run whose writes wait for a slow backend
    project = harness.new_project(300)
    with harness.proxy.delay("PUT", r"/tasks/\d+/annotate", 0.5):
        before = len(harness.proxy.requests("PUT", r"/tasks/\d+/annotate"))
        job = harness.to_task(project)
        harness.wait_for(
            lambda: len(harness.proxy.requests("PUT", r"/tasks/\d+/annotate")) > before + 8, "some writes"
        )

        # When it is stopped
        stop_within(harness, job, MAX_STOP_SECONDS)
        reported = time.time()
        harness.wait_for(lambda: harness.has_no_messages(), "all messages are acknowledged")

    # Then no write begins after the backend has received the end
    late = [put for put in harness.proxy.requests("PUT", r"/tasks/\d+/annotate") if put.began > reported]
    assert late == []
    # And the result counts the tasks that were written, except at most four in flight
    result, written = harness.job(job)["result"], sum(harness.write_counts(project))
    assert result["total_tasks"] == 300
    assert result["failed_count"] == 0
    assert result["success_count"] <= written <= result["success_count"] + 4
    assert harness.final_statuses(job) == ["STOPPED"]
    assert max(harness.write_counts(project)) == 1


@pytest.mark.parametrize(
    ("step", "path"),
    [
        ("to_task.initialize", r"/jobs/\d+/"),
        ("to_task.prepare", r"/projects/"),
        ("to_task.fetch_tasks", r"/sdk/tasks/"),
    ],
)
def test_a_stop_does_not_wait_for_a_hanging_dependency(harness: ProxiedHarness, step: str, path: str) -> None:
    # Given a run at a step whose request the backend does not answer for a while
    project = harness.new_project(5)
    with harness.proxy.delay("GET", path, 8):
        job = harness.to_task(project)
        harness.wait_for(lambda: harness.is_at_step(job, step), step)

        # When it is stopped, then it ends in time
        stop_within(harness, job, MAX_STOP_SECONDS)
    harness.wait_for(lambda: harness.has_no_messages(), "all messages are acknowledged")

    assert harness.final_statuses(job) == ["STOPPED"]
    assert harness.write_counts(project) == [0] * 5
    assert harness.job(job)["result"]["success_count"] == 0


def test_a_stop_of_a_waiting_run_empties_its_waiting_list(harness: ProxiedHarness) -> None:
    # Given three runs that wait for a pre-processor whose deployment does not end
    before = len(harness.proxy.requests("POST", "/plugins/echo"))
    projects = [harness.new_project(2) for _ in range(3)]
    release = harness.state.value("SELECT id FROM plugin_releases WHERE code = 'echo'")
    with (
        harness.proxy.intercept("POST", "/plugins/echo", Response(201, json.dumps({"id": 987654}).encode())),
        harness.proxy.intercept(
            "GET", "/jobs/987654/", Response(200, json.dumps({"status": "RUNNING"}).encode())
        ),
    ):
        inference = {"method": "inference", "pre_processor": release, "model": 1}
        jobs = [harness.to_task(project, **inference) for project in projects]
        for job in jobs:
            harness.wait_for(
                lambda job=job: harness.is_at_step(job, "pre_processor.dispatch"), "the dispatch step"
            )
        harness.wait_for(
            lambda: len(harness.proxy.requests("POST", "/plugins/echo")) > before, "the dispatch"
        )

        # When all are stopped
        for job in jobs:
            stop_within(harness, job, MAX_STOP_SECONDS)

        # Then the waiting list is deleted, and no heartbeat and no poll is left of it
        harness.wait_for(
            lambda: not list(harness.redis.scan_iter("synapse:rooms:*:waiters")),
            "the end of the waiting list",
        )
        heartbeats = {f"run:{job}" for job in jobs}
        harness.wait_for(
            lambda: not heartbeats & set(harness.redis.zrange(heartbeats_key(), 0, -1)),
            "no heartbeat of these runs",
        )
        harness.wait_for(
            lambda: "waitlist:" not in repr(harness.redis.zrange(heartbeats_key(), 0, -1)),
            "no heartbeat of a waiting list",
        )
        harness.wait_for(lambda: harness.has_no_messages(), "no poll")
    assert len(harness.proxy.requests("POST", "/plugins/echo")) == before + 1
    assert [harness.final_statuses(job) for job in jobs] == [["STOPPED"]] * 3
    assert [harness.write_counts(project) for project in projects] == [[0, 0]] * 3


def test_a_stop_before_the_message_ends_the_job_without_it(harness: ProxiedHarness) -> None:
    # Given a job whose message no worker has read
    project = harness.new_project(3)
    job = harness.new_job()

    # When it is stopped, then it ends
    stop_within(harness, job, MAX_STOP_SECONDS)

    # And when its message is read afterwards, twice
    message = {"job": job, "plugin": "echo@1.0.0", "params": harness.to_task_params(project)}
    for _ in range(2):
        harness.publish(ToTaskMessage.model_validate(message))
    harness.wait_for(lambda: harness.run_record(job).get("status") == "STOPPED", "the message was read")
    harness.wait_for(lambda: harness.has_no_messages(), "all messages are acknowledged")

    # Then nothing runs, and the job has ended once
    assert harness.write_counts(project) == [0, 0, 0]
    assert harness.final_statuses(job) == ["STOPPED"]


def test_a_stop_and_its_message_at_once_end_once(harness: ProxiedHarness) -> None:
    # Given jobs whose message and stop are published at the same time, in either order
    project = harness.new_project(3)
    jobs = [harness.new_job() for _ in range(20)]
    for number, job in enumerate(jobs):
        message = {"job": job, "plugin": "echo@1.0.0", "params": harness.to_task_params(project)}
        both = [ToTaskMessage.model_validate(message), StopMessage(job=job)]
        for each in both if number % 2 else reversed(both):
            harness.publish(each)

    # Then each ends once, as STOPPED or, when it was faster, as SUCCEEDED, and does not start again
    ends = [harness.wait_for_end(job)["status"] for job in jobs]
    harness.wait_for(lambda: harness.has_no_messages(), "all messages are acknowledged")
    assert set(ends) <= {"STOPPED", "SUCCEEDED"}
    assert [harness.final_statuses(job) for job in jobs] == [[end] for end in ends]
    assert all(harness.redis.exists(stop_key(job)) for job in jobs)


def test_a_job_that_is_stopped_in_the_backend_ends_its_run(harness: ProxiedHarness) -> None:
    # Given a run that annotates
    project = harness.new_project(200)
    with harness.proxy.delay("PUT", r"/tasks/\d+/annotate", 0.2):
        job = harness.to_task(project)
        harness.wait_for(lambda: sum(harness.write_counts(project)) > 4, "some writes")

        # When the job is set to STOPPED in the backend
        harness.state.update("jobs", int(job), {"status": "STOPPED"})

        # Then the response to the next report ends the run
        harness.wait_for(lambda: harness.run_record(job)["status"] == "STOPPED", "the run has ended", 4)
        ended = time.time()
        harness.wait_for(lambda: harness.has_no_messages(), "all messages are acknowledged")
    late = [put for put in harness.proxy.requests("PUT", r"/tasks/\d+/annotate") if put.began > ended + 0.05]
    assert late == []
    assert sum(harness.write_counts(project)) < 100
    assert harness.job(job)["status"] == "STOPPED"


def test_stop_is_handled_while_annotations_fill_all_threads(harness: ProxiedHarness) -> None:
    # Given more chunks under way than the worker has threads, each with slow writes
    projects = [harness.new_project(200) for _ in range(4)]
    with harness.proxy.delay("PUT", r"/tasks/\d+/annotate", 0.5):
        jobs = [harness.to_task(project) for project in projects]
        harness.wait_for(
            lambda: sum(sum(harness.write_counts(project)) for project in projects) > 8, "some writes"
        )

        # When they are stopped one after the other, then each ends in time
        for job in jobs:
            stop_within(harness, job, MAX_STOP_SECONDS)
        harness.wait_for(harness.has_no_messages, "all messages are acknowledged", 30)
    assert [harness.final_statuses(job) for job in jobs] == [["STOPPED"]] * 4
