"""A message that is published many times, at the same time or after the end, is one run."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.integration.safety.proxied_harness import ProxiedHarness


def send(harness: ProxiedHarness, job: int | str, params: dict[str, Any]) -> None:
    with harness.new_client() as app:
        kwargs = {"job": job, "plugin": "echo@1.0.0", "params": params}
        app.send_task("to_task", kwargs=kwargs, queue="to_task")


def test_the_same_message_ten_times_at_once_is_one_run(harness: ProxiedHarness) -> None:
    # Given a message whose job id is a number for some publishers and a text for others
    project = harness.new_project(60)
    job, params = harness.new_job(), harness.to_task_params(project)

    # When ten publishers publish it at the same time
    with ThreadPoolExecutor(10) as pool:
        list(pool.map(lambda n: send(harness, int(job) if n % 2 else job, params), range(10)))

    # Then the run ends once, with exact counts, and each task is written once
    result = harness.wait_for_end(job)["result"]
    harness.wait_for(harness.has_no_messages, "all messages are acknowledged")
    assert (result["total_tasks"], result["success_count"], result["failed_count"]) == (60, 60, 0)
    assert harness.final_statuses(job) == ["SUCCEEDED"]
    assert harness.write_counts(project) == [1] * 60


def test_the_same_message_again_after_the_end_starts_nothing(harness: ProxiedHarness) -> None:
    # Given a run that has ended
    project = harness.new_project(3)
    job, params = harness.new_job(), harness.to_task_params(project)
    send(harness, int(job), params)
    end = harness.wait_for_end(job)
    harness.wait_for(harness.has_no_messages, "all messages are acknowledged")
    letters = len(harness.dead_letters())
    patches = len(harness.proxy.requests("PATCH", f"/jobs/{job}/"))

    # When its message is published again, with both forms of its id, and one with other parameters
    for id_ in (int(job), job):
        send(harness, id_, params)
    send(harness, job, {**params, "name": "another"})
    harness.wait_for(harness.has_no_messages, "all messages are acknowledged")

    # Then nothing happens
    assert harness.job(job) == end
    assert len(harness.proxy.requests("PATCH", f"/jobs/{job}/")) == patches
    assert harness.write_counts(project) == [1, 1, 1]
    assert len(harness.dead_letters()) == letters


def test_ids_that_only_look_alike_are_two_jobs(harness: ProxiedHarness) -> None:
    # Given two jobs of the backend whose ids look alike
    projects = [harness.new_project(1), harness.new_project(1)]
    jobs: list[int | str] = [7007, "job-07007"]
    for job, project in zip(jobs, projects, strict=True):
        harness.state.add_job(id=job, agent=1)
        send(harness, job, harness.to_task_params(project))

    # Then both run
    assert [harness.wait_for_end(str(job))["status"] for job in jobs] == ["SUCCEEDED"] * 2
    assert [harness.write_counts(project) for project in projects] == [[1], [1]]
