"""What is rejected, stopped, or shown of a message."""

from celery import Celery

from shared.channels import dead_letters_key
from tests.integration.workflows.platform import Platform


def test_a_message_with_an_unknown_key_is_kept_its_job_fails(platform: Platform) -> None:
    # Given a message with a key that nobody knows
    job = platform.new_job()
    platform.send_bare("to_task", "to_task", job=int(job), plugin="echo@1.0.0", params={}, colour="red")

    # Then the job fails with the reason
    end = platform.end_of(job)
    assert end["status"] == "FAILED"
    assert "colour" in end["result"]["error"]
    # And the message is kept whole
    assert any('"colour": "red"' in letter["body"] for _, letter in platform.redis.xrange(dead_letters_key()))


def test_a_message_of_an_unknown_plugin_is_kept_its_job_fails(platform: Platform) -> None:
    job = platform.deploy("nobody@9.9.9")

    end = platform.end_of(job)
    assert end["status"] == "FAILED"
    assert "nobody@9.9.9" in end["result"]["error"]


def test_a_job_that_is_over_at_the_backend_starts_nothing(platform: Platform) -> None:
    # Given a job that was stopped before its message is read
    project = platform.project(3)
    job = platform.new_job(status="STOPPED")

    # When its message comes, and after it another one's that has ended
    params = {
        "name": "late", "project": project.id, "agent": 1, "target_specification_name": "label_1",
    }  # fmt: skip
    platform.send_bare("to_task", "to_task", job=int(job), plugin="echo@1.0.0", params=params)
    assert platform.end_of(platform.to_task_by_file(platform.project(1)))["status"] == "SUCCEEDED"

    # Then nothing was annotated and nothing reported
    assert platform.annotations(project) == []
    assert platform.requests("PATCH", f"/jobs/{job}/") == []


def test_a_stop_ends_a_run_that_waits_for_its_pre_processor(platform: Platform) -> None:
    # Given a run that waits for a pre-processor which never gets ready
    release = platform.release("slow")
    project = platform.project(3)
    job = platform.to_task_by_inference(project, release)
    platform.wait(
        lambda: platform.redis.hget(f"synapse:jobs:{{{job}}}", "step") == "pre_processor.dispatch", "wait"
    )

    # When it is stopped
    platform.stop(job)

    # Then the job is STOPPED and nothing was annotated
    end = platform.end_of(job)
    assert end["status"] == "STOPPED"
    assert end["result"]["error"] == "stopped"
    assert platform.annotations(project) == []


def test_a_stop_before_the_message_is_remembered(platform: Platform) -> None:
    # Given a stop for a job whose message has not come
    project = platform.project(3)
    job = platform.new_job()
    platform.stop(job)
    platform.wait(lambda: platform.redis.exists(f"synapse:jobs:{{{job}}}:stop"), "the stop")

    # When the message comes
    params = {
        "name": "late", "project": project.id, "agent": 1, "target_specification_name": "label_1",
    }  # fmt: skip
    platform.send_bare("to_task", "to_task", job=int(job), plugin="echo@1.0.0", params=params)

    # Then the run ends at once
    assert platform.end_of(job)["status"] == "STOPPED"
    assert platform.annotations(project) == []


def test_arguments_of_a_bare_message_are_not_shown(platform: Platform) -> None:
    # Given task events that somebody listens to
    seen: list[dict[str, object]] = []
    with (
        Celery(broker=platform.sandbox.redis_url, set_as_current=False) as app,
        app.connection() as connection,
    ):
        receiver = app.events.Receiver(connection, handlers={"task-received": seen.append})
        events = receiver.itercapture(limit=None, timeout=30, wakeup=True)
        next(events, None)

        # When a bare message carries something that is nobody's business
        job = platform.new_job()
        platform.send_bare(
            "to_task", "to_task", job=int(job), plugin="echo@1.0.0", params={"name": "hush-hush"}
        )
        platform.end_of(job)
        receiver.capture(limit=1, timeout=10, wakeup=False)

    # Then neither the events nor the worker's log show it
    assert "hush-hush" not in repr(seen)
    assert "hush-hush" not in platform.worker_log()
