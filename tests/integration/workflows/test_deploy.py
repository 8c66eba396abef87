"""`deploy` on a real Ray, from the message to the backend's record."""

from shared.channels import logs_history
from shared.messages import DeployMessage
from tests.integration.workflows.ray_harness import RayHarness, replicas


def test_deploy_puts_the_application_online_and_registers_it(harness: RayHarness) -> None:
    # When a release is deployed for the first time
    job = harness.deploy("echo@1.0.0", num_cpus=1)

    # Then the job succeeds, and its result is the backend's record of the application
    end = harness.wait_for_end(job)
    [record] = harness.application_records(job)
    assert (end["status"], end["result"]) == ("SUCCEEDED", {"serve_application": record["id"]})
    # And the application responds
    assert harness.call_application("echo@1.0.0", {"text": "hello"}) == {"said": "hello", "by": "1.0.0"}
    # And the progress is complete
    assert end["progress_record"]["current_progress"]["overall"] == 100


def test_deploying_the_same_again_does_not_restart_it(harness: RayHarness) -> None:
    # Given a running application
    assert harness.wait_for_end(harness.deploy("echo@1.0.0", num_cpus=1))["status"] == "SUCCEEDED"
    before = replicas(harness, "echo@1.0.0")

    # When an identical message for another job is published
    job = harness.deploy("echo@1.0.0", num_cpus=1)

    # Then the job succeeds, and the replicas are the same
    assert harness.wait_for_end(job)["status"] == "SUCCEEDED"
    assert replicas(harness, "echo@1.0.0") == before


def test_a_forced_deployment_replaces_an_identical_application(harness: RayHarness) -> None:
    # Given a running application
    assert harness.wait_for_end(harness.deploy("echo@1.0.0", num_cpus=1))["status"] == "SUCCEEDED"
    before = replicas(harness, "echo@1.0.0")

    # When an identical message that is forced is published
    job = harness.new_job(plugin="echo@1.0.0", action="deployment")
    fields = {"job": job, "plugin": "echo@1.0.0", "agent": 1, "params": {"num_cpus": 1}, "force": True}
    harness.publish(DeployMessage.model_validate(fields))

    # Then the job succeeds, and other replicas answer
    assert harness.wait_for_end(job)["status"] == "SUCCEEDED"
    forced = replicas(harness, "echo@1.0.0")
    assert not forced & before
    assert harness.call_application("echo@1.0.0", {"text": "again"})["said"] == "again"

    # And a message without force leaves these where they are
    assert harness.wait_for_end(harness.deploy("echo@1.0.0", num_cpus=1))["status"] == "SUCCEEDED"
    assert replicas(harness, "echo@1.0.0") == forced


def test_a_denied_redeploy_leaves_the_running_application_alone(harness: RayHarness) -> None:
    # Given a running application
    assert harness.wait_for_end(harness.deploy("echo@1.0.0", num_cpus=1))["status"] == "SUCCEEDED"
    before = replicas(harness, "echo@1.0.0")

    # When a message for the same release requires a GPU, which the cluster does not have
    end = harness.wait_for_end(harness.deploy("echo@1.0.0", num_cpus=1, num_gpus=1))

    # Then its job fails with the capacity gate's error
    expected = "Serve deploy denied: insufficient cluster capacity (['insufficient_gpu'])"
    assert (end["status"], end["result"]) == ("FAILED", {"error": expected})
    # And the running application is unchanged
    assert replicas(harness, "echo@1.0.0") == before
    assert harness.call_application("echo@1.0.0", {"text": "still"})["said"] == "still"


def test_a_deployment_that_cannot_start_fails_and_is_removed(harness: RayHarness) -> None:
    # When a release is deployed whose constructor raises
    end = harness.wait_for_end(harness.deploy("broken@1.0.0", num_cpus=1))

    # Then the job's error has Serve's explanation
    assert end["status"] == "FAILED"
    assert "the weights are missing" in end["result"]["error"]
    # And the application is removed, and not registered
    harness.wait_for(
        lambda: "broken@1.0.0" not in harness.serve_applications(), "removal of the failed application"
    )
    assert (
        harness.state.value("SELECT count(*) FROM serve_applications WHERE application = 'broken@1.0.0'") == 0
    )


def test_the_same_message_ten_times_is_one_run(harness: RayHarness) -> None:
    # Given a job
    job = harness.new_job(plugin="echo@1.0.0", action="deployment")

    # When its message is published ten times, with Celery alone
    for _ in range(10):
        harness.send_task(
            "deploy",
            "deploy",
            {"job": int(job), "plugin": "echo@1.0.0", "agent": 1, "params": {"num_cpus": 1}},
        )

    # Then there is one final status and one record
    assert harness.wait_for_end(job)["status"] == "SUCCEEDED"
    assert len(harness.application_records(job)) == 1
    assert harness.final_statuses(job) == ["SUCCEEDED"]


def test_a_decorated_class_serves_and_its_action_is_heard(harness: RayHarness) -> None:
    # When a release is deployed whose entrypoint is a property, with the form that Ray's documentation has
    job = harness.deploy("decorated@1.0.0", num_cpus=0.5)
    end = harness.wait_for_end(job)

    # Then it answers, and knows the backend
    assert end["status"] == "SUCCEEDED", end["result"]
    answer = {"said": "hello", "backend": harness.sandbox.backend_url}
    assert harness.call_application("decorated@1.0.0", {"text": "hello"}) == answer
    # And what its action said while it was planned is in the run's log, progress and metrics
    lines = [fields.get("line") for _, fields in harness.redis.xrange(logs_history(job))]
    assert lines[:3] == [
        "chooses a route",
        'metric {"category": "plan", "key": "routes", "value": 1, "metrics": {"depth": 2}}',
        "a warning of the logger's",
    ]
    assert end["progress_record"]["record"]["steps"]["choose"]["percent"] == 25
    assert end["metrics_record"]["record"]["steps"]["choose"] == {"routes": 1}
