"""Messages that are rejected, that come after a stop or an end, and what is logged of their arguments."""

from shared.channels import dead_letters_key
from tests.integration.workflows.ray_harness import RayHarness


def test_unknown_key_fails_the_job_and_keeps_the_message(harness: RayHarness) -> None:
    # When a message with an unknown key is published
    job = harness.new_job()
    message = {"job": int(job), "plugin": "echo@1.0.0", "params": {}, "colour": "red"}
    harness.send_task("to_task", "to_task", message)

    # Then the job fails with the reason
    end = harness.wait_for_end(job)
    assert end["status"] == "FAILED"
    assert "colour" in end["result"]["error"]
    # And the whole message is a dead letter
    assert any('"colour": "red"' in letter["body"] for _, letter in harness.redis.xrange(dead_letters_key()))


def test_a_message_for_an_unknown_plugin_fails_its_job(harness: RayHarness) -> None:
    job = harness.deploy("nobody@9.9.9")

    end = harness.wait_for_end(job)
    assert end["status"] == "FAILED"
    assert "nobody@9.9.9" in end["result"]["error"]


def test_a_job_that_has_ended_at_the_backend_does_not_run(harness: RayHarness) -> None:
    # Given a job that is stopped in the backend before its message is read
    project = harness.new_project(3)
    job = harness.new_job(status="STOPPED")

    # When its message is published, and a run whose message is published after it has ended
    params = harness.to_task_params(project, target_specification_name="label_1")
    harness.send_task("to_task", "to_task", {"job": int(job), "plugin": "echo@1.0.0", "params": params})
    assert harness.wait_for_end(harness.to_task_by_file(harness.new_project(1)))["status"] == "SUCCEEDED"

    # Then no task is annotated and nothing is reported
    assert harness.annotated_tasks(project) == []
    assert harness.requests("PATCH", f"/jobs/{job}/") == []


def test_a_stop_ends_a_run_that_waits_for_its_pre_processor(harness: RayHarness) -> None:
    # Given a run that waits for a pre-processor which never becomes ready
    release = harness.release_id("slow")
    project = harness.new_project(3)
    job = harness.to_task_by_inference(project, release)
    harness.wait_for(
        lambda: harness.redis.hget(f"synapse:jobs:{{{job}}}", "step") == "pre_processor.dispatch",
        "the dispatch step",
    )

    # When it is stopped
    harness.stop(job)

    # Then the job is STOPPED and no task is annotated
    end = harness.wait_for_end(job)
    assert end["status"] == "STOPPED"
    assert end["result"]["error"] == "stopped"
    assert harness.annotated_tasks(project) == []


def test_a_stop_before_the_message_is_remembered(harness: RayHarness) -> None:
    # Given a stop for a job whose message has not been published
    project = harness.new_project(3)
    job = harness.new_job()
    harness.stop(job)
    harness.wait_for(lambda: harness.redis.exists(f"synapse:jobs:{{{job}}}:stop"), "the stop")

    # When its message is published
    params = harness.to_task_params(project, target_specification_name="label_1")
    harness.send_task("to_task", "to_task", {"job": int(job), "plugin": "echo@1.0.0", "params": params})

    # Then the run is stopped before it annotates
    assert harness.wait_for_end(job)["status"] == "STOPPED"
    assert harness.annotated_tasks(project) == []


def test_message_arguments_are_neither_logged_nor_sent_as_event(harness: RayHarness) -> None:
    # Given a receiver of task events
    received: list[dict[str, object]] = []
    with (
        harness.new_client() as app,
        app.connection() as connection,
    ):
        receiver = app.events.Receiver(connection, handlers={"task-received": received.append})
        events = receiver.itercapture(limit=None, timeout=30, wakeup=True)
        next(events, None)
        app.control.broadcast("enable_events", reply=True)

        # When a message with a confidential value is published with Celery alone
        job = harness.new_job()
        message = {"job": int(job), "plugin": "echo@1.0.0", "params": {"name": "hush-hush"}}
        harness.send_task("to_task", "to_task", message)
        harness.wait_for_end(job)
        while not received:
            next(events)

    # Then neither the events nor the worker's log contain it
    assert "hush-hush" not in repr(received)
    assert "hush-hush" not in harness.worker_log()
