"""Chunks of a run by file go to all processes that can begin one, and keep no small run waiting."""

import json
import re

import pytest

from tests.integration.safety.proxied_harness import ProxiedHarness
from tests.integration.safety.recording_proxy import RecordingProxy
from tests.integration.safety.redis_monitor import RedisMonitor, with_base64_decoded

WRITE = r"/tasks/\d+/annotate"
CHUNK = 50
"""The harness's worker has chunks of so many tasks, and four requests in flight."""


@pytest.mark.slow
@pytest.mark.redis_queues("a worker leaves there what it cannot begin")
def test_processes_share_the_chunks_of_a_run(harness: ProxiedHarness) -> None:
    # Given a second worker process
    log_before = len(harness.worker_log())
    second = RecordingProxy(harness.sandbox.backend_url)
    worker = harness.sandbox.start_worker(
        concurrency=8,
        env={
            "SYNAPSE_HOST": second.url,
            "WORKER_PLUGIN_HOST": "process",
            "WORKER_ANNOTATE_CONCURRENCY": "4",
            "WORKER_ANNOTATE_CHUNK": str(CHUNK),
        },
    )
    try:
        project = harness.new_project(16 * CHUNK)
        before = len(harness.proxy.requests("PUT", WRITE))

        # When both annotate a run whose backend is slow
        with harness.proxy.delay("PUT", WRITE, 0.05), second.delay("PUT", WRITE, 0.05):
            job = harness.to_task(project)
            # Then some chunks wait in the queue for whoever can begin one
            harness.wait_for(lambda: harness.redis.llen("annotate") == 2, "chunks that wait")
            assert harness.wait_for_end(job)["status"] == "SUCCEEDED"

        # And each writes its part, each task once
        parts = [len(harness.proxy.requests("PUT", WRITE)) - before, len(second.requests("PUT", WRITE))]
        assert sum(parts) == 16 * CHUNK
        assert min(parts) >= 5 * CHUNK, parts
        assert max(harness.write_counts(project)) == 1

        # And no chunk was sent back for want of a slot
        logs = harness.worker_log()[log_before:] + worker.log.read_text()
        assert len(re.findall(r"to_task\.annotate\S* succeeded", logs)) == 16
        assert not re.search(r"to_task\.annotate\S* retry", logs)
    finally:
        worker.stop()
        second.close()


@pytest.mark.redis_queues("the list of each priority")
@pytest.mark.parametrize("priority", [3, 9])
def test_all_messages_of_a_run_have_its_priority(harness: ProxiedHarness, priority: int) -> None:
    # Given a message with a priority
    job = harness.new_job(plugin="echo@1.0.0", action="to_task")
    params = harness.to_task_params(harness.new_project(3 * CHUNK))
    kwargs = {"job": job, "plugin": "echo@1.0.0", "params": params}

    # When its run is carried out
    with RedisMonitor(harness.redis_url) as monitor:
        harness.celery.send_task("to_task", kwargs=kwargs, queue="to_task", priority=priority)
        assert harness.wait_for_end(job)["status"] == "SUCCEEDED"
        harness.wait_for(harness.has_no_messages, "the end of all messages")

    # Then each of its messages was in the list of that priority
    pushes = [command.split(" ", 2) for command in monitor.commands if re.match("[LR]PUSH|lpush", command)]
    ours = [
        (key, json.loads(body)["headers"]["task"])
        for _, key, body in pushes
        if f'"job": "{job}"' in with_base64_decoded(body)
    ]
    assert {task for _, task in ours} >= {
        "to_task",
        "to_task.prepare",
        "to_task.annotate",
        "to_task.finalize",
    }
    assert {key.partition(r"\x06\x16")[2] for key, _ in ours} == {str(priority)}


def test_small_runs_end_beside_a_large_one(harness: ProxiedHarness) -> None:
    # Given a large run that uses all requests of the worker
    large, small = harness.new_project(80 * CHUNK), [harness.new_project(5) for _ in range(5)]
    before = len(harness.proxy.requests("PUT", WRITE))
    with harness.proxy.delay("PUT", WRITE, 0.05):
        large_job = harness.to_task(large)
        harness.wait_for(lambda: len(harness.proxy.requests("PUT", WRITE)) > before + CHUNK, "some writes")

        # When small ones of the same release follow
        jobs = [harness.to_task(project) for project in small]

        # Then they end while it is under way
        assert [harness.wait_for_end(job)["status"] for job in jobs] == ["SUCCEEDED"] * 5
        assert harness.job(large_job)["status"] == "RUNNING"
        harness.stop(large_job)
        harness.wait_for_end(large_job)
