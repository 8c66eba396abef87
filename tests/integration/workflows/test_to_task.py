"""`to_task` by both methods, from the message to every task's data."""

import json

import pytest

from shared.channels import logs_history
from tests.integration.workflows.ray_harness import RayHarness


def test_by_file_annotates_every_task_once(harness: RayHarness) -> None:
    # Given a project of more than two chunks
    project = harness.new_project(250)

    # When it is annotated from files
    end = harness.wait_for_end(harness.to_task_by_file(project))

    # Then every task has its data, written once
    assert end["status"] == "SUCCEEDED"
    assert [task["data"] for task in harness.annotated_tasks(project)] == [
        {"label": f"{n}.json"} for n in range(250)
    ]
    assert set(harness.write_counts(project)) == {1}
    # And the result counts them
    counts = {
        name: end["result"][name] for name in ("total_tasks", "success_count", "failed_count", "failures")
    }
    assert counts == {"total_tasks": 250, "success_count": 250, "failed_count": 0, "failures": []}
    # And the metrics count them
    assert end["metrics_record"]["record"]["steps"]["annotate_task_data"] == {
        "success": 250, "failed": 0, "stand_by": 0,
    }  # fmt: skip


def test_a_bad_task_is_a_failure_record_and_the_run_succeeds(harness: RayHarness) -> None:
    # Given a project of which one file cannot be read by the plugin
    def url(name: str, number: int) -> str:
        return f"http://127.0.0.1/{name}/{number}"

    project = harness.new_project(5, file_url=url)
    unit = project.data_units[3]
    files = {
        "image_1": {"url": "http://127.0.0.1/3", "is_primary": True, "file_name_original": "3.png"},
        "label_1": {"url": "http://127.0.0.1/3", "is_primary": False, "file_name_original": "bad.json"},
    }
    harness.state.execute("UPDATE data_units SET files = ? WHERE id = ?", json.dumps(files), unit)

    # When it is annotated
    end = harness.wait_for_end(harness.to_task_by_file(project))

    # Then the run succeeds, and its result has the failed task and the reason
    assert end["status"] == "SUCCEEDED"
    assert end["result"]["success_count"] == 4
    [failure] = end["result"]["failures"]
    assert failure["task_id"] == project.tasks[3]
    assert "cannot read bad.json" in failure["error"]


def test_what_hooks_say_is_in_the_runs_log_and_reported(harness: RayHarness) -> None:
    # When a plugin annotates that says something of every task
    job = harness.to_task_by_file(harness.new_project(3), "decorated@1.0.0")

    # Then each of its messages is a line of the log, and an entry for the backend, in the order of its calls
    assert harness.wait_for_end(job)["status"] == "SUCCEEDED"
    said = [f"reads {n}.json" for n in range(3)]
    lines = [fields.get("line") for _, fields in harness.redis.xrange(logs_history(job))]
    heard = [line for line in lines if line in said]
    assert sorted(heard) == said
    entries = harness.state.rows("SELECT data, level FROM logs WHERE job = ? ORDER BY id", int(job))
    assert [(entry["data"]["content"], entry["level"]) for entry in entries[:3]] == [
        (line, "warning") for line in heard
    ]


def test_a_project_without_tasks_fails(harness: RayHarness) -> None:
    end = harness.wait_for_end(harness.to_task_by_file(harness.new_project(0)))

    assert (end["status"], end["result"]) == ("FAILED", {"error": "No tasks found to annotate"})


def test_many_runs_dispatch_an_absent_pre_processor_once(harness: RayHarness) -> None:
    # Given a pre-processor that is not running, and twenty projects that need it
    if "echo@2.0.0" in harness.serve_applications():
        harness.delete_application("echo@2.0.0")
    before = harness.dispatch_count("echo")
    projects = [harness.new_project(3) for _ in range(20)]

    # When all their messages are published at the same time
    release = harness.release_id("echo", "2.0.0")
    jobs = [harness.to_task_by_inference(project, release) for project in projects]

    # Then each run succeeds, with its tasks annotated by that release
    for job, project in zip(jobs, projects, strict=True):
        assert harness.wait_for_end(job)["status"] == "SUCCEEDED"
        assert [task["data"]["by"] for task in harness.annotated_tasks(project)] == ["2.0.0"] * 3
    # And one deployment was dispatched
    assert harness.dispatch_count("echo") - before == 1


@pytest.mark.ray
def test_a_pre_processor_that_cannot_start_fails_its_runs(harness: RayHarness) -> None:
    # Given a pre-processor whose constructor raises, and a cluster that has a CPU for it
    if "echo@2.0.0" in harness.serve_applications():
        harness.delete_application("echo@2.0.0")
    release = harness.release_id("broken")
    jobs = [harness.to_task_by_inference(harness.new_project(2), release) for _ in range(3)]

    # Then every run that waits for it fails with the contract's error, which the job's own reason follows
    for message in {harness.wait_for_end(job)["result"]["error"] for job in jobs}:
        error, _, reason = message.partition(": ")[2].partition(": ")
        assert error in (
            "job reached terminal state (FAILED)",
            "serve application reached terminal state (DEPLOY_FAILED)",
        )
        assert message.startswith("Pre-processor deployment failed: ")
        if error.startswith("job"):
            assert "the weights are missing" in reason
