"""stop ends a run at any step within two seconds and what is in flight, and nothing begins after it."""

import json
import time

import pytest

from shared import StopMessage, ToTaskMessage
from tests.integration.safety.proxy import Answer
from tests.integration.safety.site import Site
from worker.runs.keys import heartbeats_key, stop_key

SOON = 2.0


def stopped_within(site: Site, job: str, seconds: float) -> None:
    asked = time.monotonic()
    site.stop(job)
    site.wait(lambda: site.job(job)["status"] == "STOPPED", f"job {job} stopped", seconds + 5)
    assert time.monotonic() - asked < seconds
    assert site.job(job)["result"]["error"] == "stopped"


def test_a_stop_while_annotating_lets_no_annotation_begin(site: Site) -> None:
    # Given a run whose writes queue up before a slow backend
    project = site.project(300)
    with site.proxy.slow("PUT", r"/tasks/\d+/annotate", 0.5):
        before = len(site.proxy.of("PUT", r"/tasks/\d+/annotate"))
        job = site.to_task(project)
        site.wait(lambda: len(site.proxy.of("PUT", r"/tasks/\d+/annotate")) > before + 8, "some writes")

        # When it is stopped
        stopped_within(site, job, SOON)
        reported = time.time()
        site.wait(lambda: site.quiet(), "the end of what was in flight")

    # Then no write began after the backend heard of the end, nor half a second before
    late = [put for put in site.proxy.of("PUT", r"/tasks/\d+/annotate") if put.began > reported]
    assert late == []
    # And the counts are those of the tasks that were written, but for those in flight
    result, written = site.job(job)["result"], sum(site.writes(project))
    assert result["total_tasks"] == 300
    assert result["failed_count"] == 0
    assert result["success_count"] <= written <= result["success_count"] + 4
    assert site.finals(job) == ["STOPPED"]
    assert max(site.writes(project)) == 1


@pytest.mark.parametrize(
    ("step", "path"),
    [
        ("to_task.initialize", r"/jobs/\d+/"),
        ("to_task.prepare", r"/projects/"),
        ("to_task.fetch_tasks", r"/sdk/tasks/"),
    ],
)
def test_a_stop_does_not_wait_for_a_hanging_dependency(site: Site, step: str, path: str) -> None:
    # Given a run that stands at a step for which the backend hangs
    project = site.project(5)
    with site.proxy.slow("GET", path, 8):
        job = site.to_task(project)
        site.wait(lambda: site.is_at(job, step), step)

        # When it is stopped, then it ends all the same
        stopped_within(site, job, SOON)
    site.wait(lambda: site.quiet(), "the end of what was in flight")

    assert site.finals(job) == ["STOPPED"]
    assert site.writes(project) == [0] * 5
    assert site.job(job)["result"]["success_count"] == 0


def test_a_stop_of_a_waiting_run_empties_its_waiting_list(site: Site) -> None:
    # Given three runs that wait for a pre-processor whose deployment takes for ever
    before = len(site.proxy.of("POST", "/plugins/echo"))
    projects = [site.project(2) for _ in range(3)]
    release = site.state.value("SELECT id FROM plugin_releases WHERE code = 'echo'")
    with (
        site.proxy.spoilt("POST", "/plugins/echo", Answer(201, json.dumps({"id": 987654}).encode())),
        site.proxy.spoilt("GET", "/jobs/987654/", Answer(200, json.dumps({"status": "RUNNING"}).encode())),
    ):
        inference = {"method": "inference", "pre_processor": release, "model": 1}
        jobs = [site.to_task(project, **inference) for project in projects]
        for job in jobs:
            site.wait(lambda job=job: site.is_at(job, "pre_processor.dispatch"), "the wait")
        site.wait(lambda: len(site.proxy.of("POST", "/plugins/echo")) > before, "the dispatch")

        # When all are stopped
        for job in jobs:
            stopped_within(site, job, SOON)

        # Then the waitlist is empty and forgotten: nobody waits, nobody polls, nobody watches over it
        site.wait(lambda: not list(site.redis.scan_iter("synapse:rooms:*:waiters")), "an empty waitlist")
        ours = {f"run:{job}" for job in jobs}
        site.wait(
            lambda: not ours & set(site.redis.zrange(heartbeats_key(), 0, -1)), "no run of these is watched"
        )
        site.wait(
            lambda: "waitlist:" not in repr(site.redis.zrange(heartbeats_key(), 0, -1)),
            "no waitlist is watched",
        )
        site.wait(lambda: site.quiet(), "no poll is left")
    assert len(site.proxy.of("POST", "/plugins/echo")) == before + 1
    assert [site.finals(job) for job in jobs] == [["STOPPED"]] * 3
    assert [site.writes(project) for project in projects] == [[0, 0]] * 3


def test_a_stop_before_the_message_ends_the_job_without_it(site: Site) -> None:
    # Given a job whose message lies unread in some long queue
    project = site.project(3)
    job = site.new_job()

    # When it is stopped, then it ends
    stopped_within(site, job, SOON)

    # And when its message is read after all, twice
    message = {"job": job, "plugin": "echo@1.0.0", "params": site.params(project)}
    for _ in range(2):
        site.publish(ToTaskMessage.model_validate(message))
    site.wait(lambda: site.record(job).get("status") == "STOPPED", "the message was read")
    site.wait(lambda: site.quiet(), "all is done")

    # Then nothing starts and the job has ended once
    assert site.writes(project) == [0, 0, 0]
    assert site.finals(job) == ["STOPPED"]


def test_a_stop_and_its_message_at_once_end_once(site: Site) -> None:
    # Given jobs whose message and stop come in either order at the same time
    project = site.project(3)
    jobs = [site.new_job() for _ in range(20)]
    for number, job in enumerate(jobs):
        message = {"job": job, "plugin": "echo@1.0.0", "params": site.params(project)}
        both = [ToTaskMessage.model_validate(message), StopMessage(job=job)]
        for each in both if number % 2 else reversed(both):
            site.publish(each)

    # Then each ends once, stopped or (when it was quicker) succeeded, and is not begun again
    ends = [site.end_of(job)["status"] for job in jobs]
    site.wait(lambda: site.quiet(), "all is done")
    assert set(ends) <= {"STOPPED", "SUCCEEDED"}
    assert [site.finals(job) for job in jobs] == [[end] for end in ends]
    assert all(site.redis.exists(stop_key(job)) for job in jobs)


def test_a_job_that_was_stopped_in_the_backend_ends_its_run(site: Site) -> None:
    # Given a run that annotates
    project = site.project(200)
    with site.proxy.slow("PUT", r"/tasks/\d+/annotate", 0.2):
        job = site.to_task(project)
        site.wait(lambda: sum(site.writes(project)) > 4, "some writes")

        # When somebody sets the job STOPPED in the backend
        site.state.update("jobs", int(job), {"status": "STOPPED"})

        # Then the next report notices, and the run ends
        site.wait(lambda: site.record(job)["status"] == "STOPPED", "the run has ended", 4)
        ended = time.time()
        site.wait(lambda: site.quiet(), "the end of what was in flight")
    late = [put for put in site.proxy.of("PUT", r"/tasks/\d+/annotate") if put.began > ended + 0.05]
    assert late == []
    assert sum(site.writes(project)) < 100
    assert site.job(job)["status"] == "STOPPED"


def test_a_stop_finds_a_thread_in_a_worker_full_of_annotations(site: Site) -> None:
    # Given more chunks under way than the worker has threads, each as slow as it may be
    projects = [site.project(200) for _ in range(4)]
    with site.proxy.slow("PUT", r"/tasks/\d+/annotate", 0.5):
        jobs = [site.to_task(project) for project in projects]
        site.wait(lambda: sum(sum(site.writes(project)) for project in projects) > 8, "some writes")

        # When they are stopped one after the other, then each ends soon
        for job in jobs:
            stopped_within(site, job, SOON)
        site.wait(site.quiet, "the end of what was in flight", 30)
    assert [site.finals(job) for job in jobs] == [["STOPPED"]] * 4
