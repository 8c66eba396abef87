"""Actions with an `execute` of their own run whole, as jobs of a real Ray."""

import time
from typing import Any

import httpx
import pytest

from shared.channels import logs_history
from tests.integration.workflows.ray_harness import RayHarness

WHOLE = "whole@1.0.0"
MAX_STOP_SECONDS = 5.0


def to_task(harness: RayHarness, what: str) -> str:
    """A run whose action does `what` its description says."""
    project = harness.new_project(1)
    params = {"method": "file", "target_specification_name": "label_1", "description": what}
    return harness.to_task(project, WHOLE, **params)


def log_of(harness: RayHarness, job: str) -> list[str]:
    """The lines of the job's log, once it is over."""
    history = logs_history(job)
    harness.wait_for(lambda: "type" in harness.redis.xrevrange(history, count=1)[0][1], "end of log", 60)
    return [fields["line"] for _, fields in harness.redis.xrange(history) if "line" in fields]


def ray_jobs(harness: RayHarness, job: str) -> list[dict[str, Any]]:
    """The Ray jobs of the run, as Ray shows them."""
    ray = harness.sandbox.ray
    assert ray is not None
    headers = {"Authorization": f"Bearer {ray.token}"}
    found = httpx.get(f"{ray.dashboard_url}/api/jobs/", headers=headers, timeout=30, trust_env=False).json()
    return [each for each in found if (each.get("metadata") or {}).get("synapse_job") == job]


def test_an_execute_of_the_authors_runs_whole(harness: RayHarness) -> None:
    # When a run's action has an execute of its own
    job = to_task(harness, "everything")
    end = harness.wait_for_end(job)

    # Then its result is the run's, and it had no token of the worker's
    expected = {"did": "everything", "greeting": "hello", "secrets": []}
    assert (end["status"], end["result"]) == ("SUCCEEDED", expected)
    # And what it printed is in the run's log, once
    assert log_of(harness, job).count("does everything its own way") == 1
    # And so are its progress and metrics, and its message at the backend
    assert end["progress_record"]["record"]["steps"]["own"]["percent"] == 50
    assert end["metrics_record"]["record"]["steps"]["own"] == {"files": 3}
    logs = harness.state.rows("SELECT data FROM logs WHERE job = ?", int(job))
    assert {"content": "does everything its own way"} in [row["data"] for row in logs]
    assert [each["status"] for each in ray_jobs(harness, job)] == ["SUCCEEDED"]


def test_the_authors_error_is_the_runs(harness: RayHarness) -> None:
    job = to_task(harness, "fail")
    end = harness.wait_for_end(job)

    error = "Plugin whole@1.0.0 failed: ValueError: this cannot be done"
    assert (end["status"], end["result"]) == ("FAILED", {"error": error})
    assert "ValueError: this cannot be done" in log_of(harness, job)


def test_a_job_that_leaves_no_result_fails(harness: RayHarness) -> None:
    end = harness.wait_for_end(to_task(harness, "exit"))

    assert end["status"] == "FAILED"
    assert "ended without a result to take over" in end["result"]["error"]


def test_a_stop_ends_the_ray_job(harness: RayHarness) -> None:
    # Given an action that sleeps
    job = to_task(harness, "sleep")
    harness.wait_for(
        lambda: [each["status"] for each in ray_jobs(harness, job)] == ["RUNNING"], "the Ray job runs", 60
    )

    # When the run is stopped
    stopped = time.monotonic()
    harness.stop(job)

    # Then it ends at once, and its Ray job soon after
    harness.wait_for(lambda: harness.job(job)["status"] == "STOPPED", f"stop of job {job}", 30)
    assert time.monotonic() - stopped < MAX_STOP_SECONDS
    harness.wait_for(
        lambda: [each["status"] for each in ray_jobs(harness, job)] == ["STOPPED"], "the Ray job ends", 30
    )
    log_of(harness, job)


@pytest.mark.ray
def test_a_deployment_with_an_execute_of_its_own(harness: RayHarness) -> None:
    # When the author's execute deploys
    job = harness.deploy(WHOLE, num_cpus=0.1)
    end = harness.wait_for_end(job, 120)

    # Then its result is the run's, the application runs, and the worker has registered nothing
    assert (end["status"], end["result"]) == ("SUCCEEDED", {"deployed": WHOLE, "by": job})
    assert harness.call_application(WHOLE, {"text": "hello"}) == {"heard": "hello"}
    assert harness.application_records(job) == []
    harness.delete_application(WHOLE)
