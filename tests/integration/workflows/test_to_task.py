"""to_task by both methods, from the message to every task's data."""

import json

from tests.integration.workflows.platform import Platform


def test_by_file_annotates_every_task_once(platform: Platform) -> None:
    # Given a project of more than two chunks
    project = platform.project(250)

    # When it is annotated from files
    end = platform.end_of(platform.to_task_by_file(project))

    # Then every task has its data, written once
    assert end["status"] == "SUCCEEDED"
    assert [task["data"] for task in platform.annotations(project)] == [
        {"label": f"{n}.json"} for n in range(250)
    ]
    assert set(platform.writes(project)) == {1}
    # And the result counts them
    counts = {
        name: end["result"][name] for name in ("total_tasks", "success_count", "failed_count", "failures")
    }
    assert counts == {"total_tasks": 250, "success_count": 250, "failed_count": 0, "failures": []}
    # And the metrics do
    assert end["metrics_record"]["record"]["steps"]["annotate_task_data"] == {
        "success": 250, "failed": 0, "stand_by": 0,
    }  # fmt: skip


def test_a_bad_task_is_a_failure_record_and_the_run_succeeds(platform: Platform) -> None:
    # Given a project of which one file cannot be read by the plugin
    def url(name: str, number: int) -> str:
        return f"http://127.0.0.1/{name}/{number}"

    project = platform.project(5, file_url=url)
    unit = project.data_units[3]
    files = {
        "image_1": {"url": "http://127.0.0.1/3", "is_primary": True, "file_name_original": "3.png"},
        "label_1": {"url": "http://127.0.0.1/3", "is_primary": False, "file_name_original": "bad.json"},
    }
    platform.state.execute("UPDATE data_units SET files = ? WHERE id = ?", json.dumps(files), unit)

    # When it is annotated
    end = platform.end_of(platform.to_task_by_file(project))

    # Then the run succeeds, and says which task failed and why
    assert end["status"] == "SUCCEEDED"
    assert end["result"]["success_count"] == 4
    [failure] = end["result"]["failures"]
    assert failure["task_id"] == project.tasks[3]
    assert "cannot read bad.json" in failure["error"]


def test_a_project_without_tasks_fails(platform: Platform) -> None:
    end = platform.end_of(platform.to_task_by_file(platform.project(0)))

    assert (end["status"], end["result"]) == ("FAILED", {"error": "No tasks found to annotate"})


def test_many_runs_dispatch_an_absent_pre_processor_once(platform: Platform) -> None:
    # Given a pre-processor that is not running, and twenty projects that need it
    if "echo@2.0.0" in platform.serve_applications():
        platform.delete_application("echo@2.0.0")
    before = platform.dispatches("echo")
    projects = [platform.project(3) for _ in range(20)]

    # When all of them are published at once
    release = platform.release("echo", "2.0.0")
    jobs = [platform.to_task_by_inference(project, release) for project in projects]

    # Then each ends with its tasks annotated by that very release
    for job, project in zip(jobs, projects, strict=True):
        assert platform.end_of(job)["status"] == "SUCCEEDED"
        assert [task["data"]["by"] for task in platform.annotations(project)] == ["2.0.0"] * 3
    # And one deployment was dispatched
    assert platform.dispatches("echo") - before == 1


def test_a_pre_processor_that_cannot_start_fails_its_runs(platform: Platform) -> None:
    # Given a pre-processor whose constructor raises
    release = platform.release("broken")
    jobs = [platform.to_task_by_inference(platform.project(2), release) for _ in range(3)]

    # Then every run that waits for it fails with the document's message
    messages = {platform.end_of(job)["result"]["error"] for job in jobs}
    assert messages <= {
        "Pre-processor deployment failed: job reached terminal state (FAILED)",
        "Pre-processor deployment failed: serve application reached terminal state (DEPLOY_FAILED)",
    }
    assert messages
