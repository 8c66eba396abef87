"""A release of `plugin new` as it is, on a real Ray: deployed, called, and used by a run."""

import pytest

from tests.integration.workflows.ray_harness import RayHarness


@pytest.mark.parametrize("code", [pytest.param("plain", marks=pytest.mark.ray), "routed"])
def test_a_new_release_is_deployed_and_annotates(harness: RayHarness, code: str) -> None:
    # Given a template's release that is deployed
    plugin = f"{code}@1.0.0"
    end = harness.wait_for_end(harness.deploy(plugin, num_cpus=0.1), 300)
    assert end["status"] == "SUCCEEDED", end

    # When tasks are annotated by inference with it
    project = harness.new_project(3)
    end = harness.wait_for_end(harness.to_task_by_inference(project, harness.release_id(code), plugin), 300)

    # Then each has what the model has answered
    assert (end["status"], end["result"]["success_count"]) == ("SUCCEEDED", 3), end
    assert harness.write_counts(project) == [1, 1, 1]
    harness.delete_application(plugin)
