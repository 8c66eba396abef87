"""The same message twice, ten times, at once, or again after the end, is one run."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery import Celery

from tests.integration.safety.site import Site


def send(site: Site, job: int | str, params: dict[str, Any]) -> None:
    with Celery(broker=site.sandbox.redis_url, set_as_current=False) as app:
        kwargs = {"job": job, "plugin": "echo@1.0.0", "params": params}
        app.send_task("to_task", kwargs=kwargs, queue="to_task")


def test_the_same_message_ten_times_at_once_is_one_run(site: Site) -> None:
    # Given a message, of which some publishers hold the job's id for a number and some for a text
    project = site.project(60)
    job, params = site.new_job(), site.params(project)

    # When ten of them publish it at the same time
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda n: send(site, int(job) if n % 2 else job, params), range(10)))

    # Then there is one end with exact counts, and each task was written once
    result = site.end_of(job)["result"]
    site.wait(site.quiet, "all copies are gone")
    assert (result["total_tasks"], result["success_count"], result["failed_count"]) == (60, 60, 0)
    assert site.finals(job) == ["SUCCEEDED"]
    assert site.writes(project) == [1] * 60


def test_the_same_message_again_after_the_end_starts_nothing(site: Site) -> None:
    # Given a run that has ended
    project = site.project(3)
    job, params = site.new_job(), site.params(project)
    send(site, int(job), params)
    end = site.end_of(job)
    site.wait(site.quiet, "all is done")
    letters = len(site.letters())
    patches = len(site.proxy.of("PATCH", f"/jobs/{job}/"))

    # When its message comes again, under both forms of its id, and one that says something else
    for again in (int(job), job):
        send(site, again, params)
    send(site, job, {**params, "name": "another"})
    site.wait(site.quiet, "all copies are gone")

    # Then nothing happens
    assert site.job(job) == end
    assert len(site.proxy.of("PATCH", f"/jobs/{job}/")) == patches
    assert site.writes(project) == [1, 1, 1]
    assert len(site.letters()) == letters


def test_ids_that_only_look_alike_are_two_jobs(site: Site) -> None:
    # Given the jobs 7007 and "07007" of the backend
    projects = [site.project(1), site.project(1)]
    jobs: list[int | str] = [7007, "job-07007"]
    for job, project in zip(jobs, projects, strict=True):
        site.state.add_job(id=job, agent=1)
        send(site, job, site.params(project))

    # Then both run
    assert [site.end_of(str(job))["status"] for job in jobs] == ["SUCCEEDED"] * 2
    assert [site.writes(project) for project in projects] == [[1], [1]]
