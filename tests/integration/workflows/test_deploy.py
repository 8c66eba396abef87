"""deploy, from the message to the backend's record, on real Ray."""

import httpx

from tests.integration.workflows.platform import Platform


def test_deploy_puts_the_application_online_and_registers_it(platform: Platform) -> None:
    # Given a release that nobody has deployed
    # When its deploy is published
    job = platform.deploy("echo@1.0.0", num_cpus=1)

    # Then the job succeeds with the record that the backend has
    end = platform.end_of(job)
    [record] = platform.applications(job)
    assert (end["status"], end["result"]) == ("SUCCEEDED", {"serve_application": record["id"]})
    # And the application answers
    assert platform.ask("echo@1.0.0", {"text": "hello"}) == {"said": "hello", "by": "1.0.0"}
    # And the progress is complete
    assert end["progress_record"]["current_progress"]["overall"] == 100


def test_deploying_the_same_again_does_not_restart_it(platform: Platform) -> None:
    # Given a running application
    assert platform.end_of(platform.deploy("echo@1.0.0", num_cpus=1))["status"] == "SUCCEEDED"
    before = _replicas(platform, "echo@1.0.0")

    # When the identical deploy comes again
    job = platform.deploy("echo@1.0.0", num_cpus=1)

    # Then it succeeds, and the replicas are the same
    assert platform.end_of(job)["status"] == "SUCCEEDED"
    assert _replicas(platform, "echo@1.0.0") == before


def test_a_denied_redeploy_leaves_the_running_application_alone(platform: Platform) -> None:
    # Given a running application
    assert platform.end_of(platform.deploy("echo@1.0.0", num_cpus=1))["status"] == "SUCCEEDED"
    before = _replicas(platform, "echo@1.0.0")

    # When a deploy of it asks for a GPU that the cluster does not have
    end = platform.end_of(platform.deploy("echo@1.0.0", num_cpus=1, num_gpus=1))

    # Then it fails with the gate's message
    expected = "Serve deploy denied: insufficient cluster capacity (['insufficient_gpu'])"
    assert (end["status"], end["result"]) == ("FAILED", {"error": expected})
    # And the running one has not been touched
    assert _replicas(platform, "echo@1.0.0") == before
    assert platform.ask("echo@1.0.0", {"text": "still"})["said"] == "still"


def test_a_deployment_that_cannot_start_says_why_and_is_removed(platform: Platform) -> None:
    # When a release is deployed whose constructor raises
    end = platform.end_of(platform.deploy("broken@1.0.0", num_cpus=1))

    # Then Serve's explanation is in the run's error
    assert end["status"] == "FAILED"
    assert "the weights are missing" in end["result"]["error"]
    # And nothing of it is left
    platform.wait(lambda: "broken@1.0.0" not in platform.serve_applications(), "removal of the broken one")
    assert (
        platform.state.value("SELECT count(*) FROM serve_applications WHERE application = 'broken@1.0.0'")
        == 0
    )


def test_the_same_message_ten_times_is_one_run(platform: Platform) -> None:
    # Given a job
    job = platform.new_job(plugin="echo@1.0.0", action="deployment")

    # When its message is published ten times by a backend that imports nothing
    for _ in range(10):
        platform.send_bare(
            "deploy", "deploy", job=int(job), plugin="echo@1.0.0", agent=1, params={"num_cpus": 1}
        )

    # Then there is one end and one record
    assert platform.end_of(job)["status"] == "SUCCEEDED"
    assert len(platform.applications(job)) == 1
    finals = [r for r in platform.requests("PATCH", f"/jobs/{job}/") if "SUCCEEDED" in r["body"]]
    assert len(finals) == 1


def _replicas(platform: Platform, name: str) -> set[str]:
    ray = platform.sandbox.ray
    assert ray is not None
    headers = {"Authorization": f"Bearer {ray.environment()['RAY_AUTH_TOKEN']}"}
    answer = httpx.get(f"{ray.dashboard_url}/api/serve/applications/", headers=headers, timeout=10)
    deployments = answer.json()["applications"][name]["deployments"].values()
    return {replica["replica_id"] for deployment in deployments for replica in deployment["replicas"]}
