"""A real Flower beside a real worker: what it shows of runs, and what its buttons do."""

import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from shared.channels import logs_history
from tests.harness.brokers import session_broker
from tests.harness.browser import chromium_page, keep_screenshot
from tests.integration.safety.proxied_harness import ProxiedHarness
from worker.sandbox.processes import Process, clean_environment, free_port, start_process
from worker.sandbox.sandbox import ALL_QUEUES, WORKER_READY

SECRET = "mark-4711"

HANGING = """
    import time

    from worker.actions import ToTaskAction


    class ToTask(ToTaskAction):
        def convert_data_from_file(
            self, primary_file_url, primary_file_name, data_file_url, data_file_name, task_data=None
        ):
            time.sleep(3600)
"""


class Flower:
    """Flower's own API, as a program or its pages use it."""

    def __init__(self, harness: ProxiedHarness, url: str) -> None:
        self.harness = harness
        self.url = url

    def get(self, path: str, **params: Any) -> Any:
        answer = httpx.get(f"{self.url}{path}", params=params, trust_env=False, timeout=30)
        answer.raise_for_status()
        return answer.json() if "json" in answer.headers["content-type"] else answer.text

    def post(self, path: str, **params: Any) -> None:
        httpx.post(f"{self.url}{path}", params=params, trust_env=False, timeout=30).raise_for_status()

    def is_ready(self) -> bool:
        try:
            return bool(self.get("/api/workers", refresh="true"))
        except httpx.HTTPError:
            return False

    def tasks_of(self, job: str) -> list[dict[str, Any]]:
        """The tasks that show this job as an argument, the first one first."""
        tasks = [
            task for task in self.get("/api/tasks").values() if f"'job': '{job}'" in str(task.get("kwargs"))
        ]
        return sorted(tasks, key=lambda task: task["received"] or 0)

    def task(self, job: str, name: str) -> dict[str, Any]:
        """The task of a job by its name, once Flower knows it."""
        found: list[dict[str, Any]] = []

        def is_known() -> bool:
            found[:] = [task for task in self.tasks_of(job) if task["name"] == name]
            return bool(found)

        self.harness.wait_for(is_known, f"{name} of job {job} in Flower")
        return found[-1]

    def wait_for_state(self, job: str, name: str, state: str) -> dict[str, Any]:
        self.harness.wait_for(lambda: self.task(job, name)["state"] == state, f"{name} is {state}")
        return self.task(job, name)


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedHarness]:
    harness = ProxiedHarness(tmp_path_factory.mktemp("flower"))
    harness.add_release("hanging", HANGING)
    try:
        harness.start()
        yield harness
    finally:
        harness.close()


@pytest.fixture(scope="module")
def process(harness: ProxiedHarness, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    log = tmp_path_factory.mktemp("flower-log") / "flower.log"
    command = [sys.executable, "-m", "celery", "-A", "worker", "flower", "--address=127.0.0.1"]
    env = {**clean_environment(), **harness.sandbox.environment(), "FLOWER_UNAUTHENTICATED_API": "true"}
    port = free_port()
    process = start_process("flower", [*command, f"--port={port}"], log=log, env=env, grace_seconds=5)
    process.port = port  # type: ignore[attr-defined]
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture(scope="module")
def flower(harness: ProxiedHarness, process: Any) -> Flower:
    flower = Flower(harness, f"http://127.0.0.1:{process.port}")
    harness.wait_for(flower.is_ready, "Flower knows the worker")
    return flower


@pytest.fixture(scope="module")
def succeeded(harness: ProxiedHarness, flower: Flower) -> str:
    """A job that ended SUCCEEDED."""
    job = harness.to_task(harness.new_project(3), description=SECRET)
    assert harness.wait_for_end(job)["status"] == "SUCCEEDED"
    return job


@pytest.fixture(scope="module")
def failed(harness: ProxiedHarness, flower: Flower) -> str:
    """A job that ended FAILED, because its project has no such specification."""
    job = harness.to_task(harness.new_project(3), target_specification_name="label_9", description=SECRET)
    assert harness.wait_for_end(job)["status"] == "FAILED"
    return job


def test_run_is_read_by_its_steps_and_its_job(flower: Flower, succeeded: str) -> None:
    flower.wait_for_state(succeeded, "to_task.finalize", "SUCCESS")

    tasks = flower.tasks_of(succeeded)
    names = [task["name"] for task in tasks]
    steps = ["initialize", "prepare", "fetch_tasks", "annotate", "finalize"]
    assert [name for name in names if name != "to_task.spread"] == [
        "to_task",
        *(f"to_task.{step}" for step in steps),
    ]
    assert {task["state"] for task in tasks} == {"SUCCESS"}
    assert {task["args"] for task in tasks} == {"()"}
    assert not [name for name in flower.get("/api/task/types")["task-types"] if name.startswith("runs.")]


def test_step_that_fails_its_run_is_a_failure(harness: ProxiedHarness, flower: Flower, failed: str) -> None:
    # Given a run that has ended FAILED
    error = harness.job(failed)["result"]["error"]

    # Then its step is a FAILURE with the run's error, for people and for Flower's own metrics
    task = flower.wait_for_state(failed, "to_task.prepare", "FAILURE")
    assert task["exception"] == f"RunFailedError({error!r})"
    assert flower.task(failed, "to_task")["state"] == "SUCCESS"
    assert 'type="task-failed"' in flower.get("/metrics")
    # And the worker's log has what was wrong, and no traceback
    assert error in harness.worker_log()
    assert "Traceback" not in harness.worker_log()


def test_rejected_message_is_a_failure(harness: ProxiedHarness, flower: Flower) -> None:
    job = harness.new_job()
    harness.send_task("to_task", "to_task", {"job": int(job), "plugin": "nobody@1.0.0", "params": {}})
    end = harness.wait_for_end(job)

    task = flower.wait_for_state(job, "to_task", "FAILURE")

    assert task["exception"] == f"RejectedMessageError({end['result']['error']!r})"


def test_nothing_but_the_job_is_shown(flower: Flower, succeeded: str, failed: str) -> None:
    flower.wait_for_state(failed, "to_task.prepare", "FAILURE")
    assert SECRET not in str(flower.get("/api/tasks"))


@pytest.mark.redis_queues("RabbitMQ counts its messages itself")
def test_delayed_and_held_messages_are_counted(harness: ProxiedHarness, flower: Flower) -> None:
    # Given a message that is not due yet
    message = {"job": int(harness.new_job()), "ray_job": "x"}
    harness.celery.send_task("tail_logs", kwargs=message, queue="logs", countdown=60)

    def stats() -> dict[str, Any]:
        [worker] = flower.get("/api/workers", refresh="true").values()
        return dict(worker.get("stats", {}))

    # Then a worker's page says so
    harness.wait_for(lambda: stats().get("messages_delayed", {}).get("logs") == 1, "the delayed message")
    assert stats()["messages_waiting"]["logs"] == 0
    assert "messages_held" in stats()


def test_revoke_of_a_waiting_message_ends_its_job(harness: ProxiedHarness, flower: Flower) -> None:
    # Given a message that waits
    job = harness.new_job()
    message = {
        "job": int(job),
        "plugin": "echo@1.0.0",
        "params": harness.to_task_params(harness.new_project(1)),
    }
    harness.celery.send_task("to_task", kwargs=message, queue="to_task", countdown=3, task_id="waits")

    # When it is revoked in Flower
    flower.post("/api/task/revoke/waits")

    # Then its job ends
    end = harness.wait_for_end(job)
    assert (end["status"], end["result"]) == ("STOPPED", {"error": "revoked"})


def test_terminate_of_a_step_ends_its_run(harness: ProxiedHarness, flower: Flower) -> None:
    # Given a step whose plugin hangs in a thread
    job = harness.to_task(harness.new_project(1), plugin="hanging@1.0.0")
    step = flower.wait_for_state(job, "to_task.annotate", "STARTED")

    # When it is terminated in Flower
    flower.post(f"/api/task/revoke/{step['uuid']}", terminate="true")

    # Then its run ends within seconds, and both logs say why
    harness.wait_for(lambda: harness.job(job)["status"] == "STOPPED", "the run is stopped", 15)
    lines = [entry.get("line", "") for _, entry in harness.redis.xrange(logs_history(job))]
    assert "to_task.annotate was dropped (terminated): the run is stopped." in lines
    assert "this pool cannot terminate a task" in harness.worker_log()
    harness.wait_for(harness.has_no_messages, "the step has ended")


def test_pages_show_the_story(flower: Flower, succeeded: str, failed: str) -> None:
    failure = flower.wait_for_state(failed, "to_task.prepare", "FAILURE")
    with chromium_page(width=1440, height=700) as page:
        # Given the list of tasks
        page.goto(f"{flower.url}/tasks")
        page.get_by_role("cell", name="to_task.finalize", exact=True).first.wait_for()
        keep_screenshot(page, "flower-tasks.png")
        assert SECRET not in page.locator("body").inner_text()

        # When it is searched by the job, then the steps of one run are there, and which one has failed
        page.get_by_placeholder("state:FAILURE").fill(f"kwargs:\"'job': '{failed}'\"")
        page.get_by_role("cell", name="to_task.finalize", exact=True).first.wait_for(state="detached")
        rows = page.locator("table tbody tr").all_inner_texts()
        assert [row.split()[:2] for row in reversed(rows)] == [
            ["to_task", "SUCCESS"],
            ["to_task.initialize", "SUCCESS"],
            ["to_task.prepare", "FAILURE"],
        ]
        assert "label_9" in rows[0]

        # When the failure is opened, then its error is read
        page.goto(f"{flower.url}/task/{failure['uuid']}")
        page.get_by_text("RunFailedError").first.wait_for()
        assert "label_9" in page.locator("body").inner_text()

        # And the page of the worker counts what is delayed and held, which RabbitMQ does itself
        if session_broker.is_rabbitmq:
            return
        page.goto(f"{flower.url}/workers")
        [worker] = flower.get("/api/workers")
        page.goto(f"{flower.url}/worker/{worker}")
        page.get_by_role("tab", name="Other").click()
        page.locator("#tab-other.active.show").get_by_text("messages_held").wait_for()
        keep_screenshot(page, "flower-worker.png")
        assert "messages_delayed" in page.locator("#tab-other").inner_text()


def test_processes_of_a_pool_fail_and_are_terminated_alike(harness: ProxiedHarness, flower: Flower) -> None:
    # Given a pool of processes in place of threads
    harness.worker.stop()
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "worker",
        "worker",
        "--pool",
        "prefork",
    ]
    env = {**clean_environment(), **harness.sandbox.environment(), "WORKER_PLUGIN_HOST": "process"}
    log = harness.worker.log.with_name("prefork.log")
    command += ["-Q", ALL_QUEUES, "-c", "4", "-l", "INFO", "-n", "prefork@%h"]
    worker = start_process("prefork", command, log=log, env=env, grace_seconds=15)
    try:
        worker.wait_until(lambda: WORKER_READY.search(log.read_text(errors="replace")) is not None, 90)

        # When a run fails, and a step that hangs is terminated in Flower
        failed = harness.to_task(harness.new_project(1), target_specification_name="label_9")
        hanging = harness.to_task(harness.new_project(1), plugin="hanging@1.0.0")
        failure = flower.wait_for_state(failed, "to_task.prepare", "FAILURE")
        step = flower.wait_for_state(hanging, "to_task.annotate", "STARTED")
        flower.post(f"/api/task/revoke/{step['uuid']}", terminate="true")

        # Then the failure has its error, and the other run ends
        assert failure["exception"] == f"RunFailedError({harness.job(failed)['result']['error']!r})"
        harness.wait_for(lambda: harness.job(hanging)["status"] == "STOPPED", "the run is stopped", 30)
        flower.wait_for_state(hanging, "to_task.annotate", "REVOKED")
        harness.wait_for(harness.has_no_messages, "the step has ended")
    finally:
        worker.stop()
