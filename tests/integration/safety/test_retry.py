"""Ended runs on a real Redis and a real worker: listed, and their failed tasks annotated by another run."""

import json
from typing import Any

import pytest

from shared import ToTaskMessage
from tests.integration.safety.proxied_harness import ProxiedHarness
from worker.runs.keys import ended_run_key, failed_tasks_key
from worker.sandbox.seed import SeededProject
from worker.settings import MB
from worker.workflow.ended_runs import EndedRuns

FAILS_FOR_SOME = """
    from worker.actions import ToTaskAction


    class ToTask(ToTaskAction):
        def convert_data_from_file(
            self, primary_file_url, primary_file_name, data_file_url, data_file_name, task_data=None
        ):
            if VERSION == 0 and int(data_file_name.partition(".")[0]) % 2:
                raise ValueError("an odd number")
            return {"label": data_file_name, "by": VERSION}
"""
TASKS = 120
"""Of the harness's chunks of 50 more than two, and a page of the failed ones."""


@pytest.fixture(scope="module", autouse=True)
def releases(harness: ProxiedHarness) -> None:
    """A release that fails for some tasks, and the next one, which does not."""
    for version in (0, 1):
        actions = FAILS_FOR_SOME.replace("VERSION", str(version))
        harness.add_release("some", actions, version=f"1.0.{version}")


def to_task(
    harness: ProxiedHarness, project: SeededProject, plugin: str = "some@1.0.0", **options: Any
) -> str:
    job = harness.new_job(plugin=plugin, action="to_task")
    fields = {"job": job, "plugin": plugin, "params": harness.to_task_params(project), **options}
    harness.publish(ToTaskMessage.model_validate(fields))
    return job


def command(harness: ProxiedHarness, *arguments: str) -> str:
    code, output = harness.run_command(*arguments)
    assert code == 0, output
    return output


def test_failed_tasks_of_an_ended_run_are_retried(harness: ProxiedHarness) -> None:
    # Given an ended run, half of whose tasks failed, whose own keys have expired
    project = harness.new_project(TASKS)
    job = to_task(harness, project)
    assert harness.wait_for_end(job)["result"]["failed_count"] == TASKS // 2
    harness.wait_for(lambda: harness.redis.ttl(f"synapse:jobs:{{{job}}}") > 0, "the expiry of the run's keys")
    day = 24 * 60 * 60
    assert min(harness.redis.ttl(key) for key in (ended_run_key(job), failed_tasks_key(job))) > 7 * day
    harness.redis.delete(*harness.redis.keys(f"synapse:jobs:{{{job}}}*"))
    before = harness.write_counts(project)

    # When a dry run says what a retry would do
    dry = harness.new_job(plugin="some@1.0.1", action="to_task")
    command(harness, "retry", job, "--new-job", dry, "--plugin", "some@1.0.1", "--dry-run")
    end = harness.wait_for_end(dry)

    # Then it ends SUCCEEDED with that, and nothing is written
    assert (end["status"], end["result"]["dry_run"]) == (
        "SUCCEEDED", {"tasks": TASKS // 2, "chunks": 2, "dispatch": None},
    )  # fmt: skip
    assert harness.write_counts(project) == before

    # When they are retried with another release
    new = harness.new_job(plugin="some@1.0.1", action="to_task")
    command(harness, "retry", job, "--new-job", new, "--plugin", "some@1.0.1")
    end = harness.wait_for_end(new)

    # Then exactly they are annotated
    assert (end["status"], end["result"]["total_tasks"], end["result"]["success_count"]) == (
        "SUCCEEDED", TASKS // 2, TASKS // 2,
    )  # fmt: skip
    tasks = harness.state.rows("SELECT data FROM tasks WHERE project = ? ORDER BY id", project.id)
    assert [task["data"]["by"] for task in tasks] == [0, 1] * (TASKS // 2)
    assert set(harness.write_counts(project)) == {1}


def test_annotated_tasks_are_left_alone(harness: ProxiedHarness) -> None:
    # Given a run that has annotated half of the tasks
    project = harness.new_project(TASKS)
    harness.wait_for_end(to_task(harness, project))

    # When all of them are annotated again, but for those that have data
    end = harness.wait_for_end(to_task(harness, project, plugin="some@1.0.1", skip_annotated=True))

    # Then each is written once, and counts
    assert (end["status"], end["result"]["success_count"]) == ("SUCCEEDED", TASKS)
    assert f"{TASKS // 2} were annotated before" in end["result"]["message"]
    assert set(harness.write_counts(project)) == {1}


def test_a_retry_of_an_unknown_run_ends_failed(harness: ProxiedHarness) -> None:
    end = harness.wait_for_end(to_task(harness, harness.new_project(1), only_failed_of="never"))

    assert end["status"] == "FAILED"
    assert end["result"]["error"].startswith("only_failed_of: the run of job never is not known")


def test_ended_runs_are_listed_and_forgotten(harness: ProxiedHarness) -> None:
    # Given a run that failed
    job = to_task(harness, harness.new_project(0))
    assert harness.wait_for_end(job)["status"] == "FAILED"

    # Then it is listed, until maintenance finds it too old
    listed = json.loads(command(harness, "runs", "list", "--status", "FAILED", "--since", "1h", "--json"))
    assert listed[0]["job"] == job
    assert listed[0]["error"] == "No tasks found to annotate"
    runs = EndedRuns(harness.redis)
    runs.trim(MB, 60)
    assert runs.get(job) is not None
    runs.trim(MB, -60)
    assert runs.get(job) is None
    assert list(runs.newest()) == []
