"""The broker is changed from Redis to RabbitMQ, or back: runs go on, and what nobody has read waits."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.messages import ToTaskMessage
from tests.harness.brokers import RedisQueues, session_broker
from tests.harness.rabbitmq import IS_MISSING, MISSING
from tests.integration.safety.proxied_harness import ProxiedHarness
from tests.integration.safety.recording_proxy import Request, Response
from worker.sandbox import Process
from worker.sandbox.sandbox import ALL_QUEUES
from worker.sandbox.seed import SeededProject

pytestmark = [
    pytest.mark.skipif(IS_MISSING, reason=MISSING),
    pytest.mark.redis_queues("these tests have both"),
    pytest.mark.chaos,
    pytest.mark.timeout(300),
]

WRITE = r"/tasks/\d+/annotate"
SECONDS_TO_GO_ON = 60
"""A run goes on once its heartbeat is overdue, here after 20 s, and a sweep has looked."""


class ChangeHarness(ProxiedHarness):
    """Workers that have their queues in the Redis of the runs, or in a RabbitMQ."""

    def __init__(self, folder: Path, old: str) -> None:
        super().__init__(folder)
        self.sandbox.start()
        self.connect()
        self.rabbitmq = session_broker.node.new_virtual_host()
        urls = {"redis": self.redis_url, "rabbitmq": self.rabbitmq.url}
        self.old = urls.pop(old)
        (self.new,) = urls.values()

    def close(self) -> None:
        super().close()
        self.rabbitmq.delete()

    def start_worker_at(self, broker_url: str, **env: str) -> Process:
        """Start a worker at this broker, and publish to it from now on."""
        self.broker_url = broker_url
        limits = {"WORKER_TENANT_RUNS": "2", "WORKER_ANNOTATE_CHUNK": "5", "WORKER_ANNOTATE_CONCURRENCY": "4"}
        timeouts = {"WORKER_VISIBILITY_TIMEOUT_SECONDS": "10", "WORKER_PRE_PROCESSOR_TIMEOUT_SECONDS": "120"}
        return self.start_worker(CELERY_BROKER_URL=broker_url, **{**limits, **timeouts, **env})

    def publish_run(self, tenant: str, tasks: int, **params: object) -> tuple[str, SeededProject]:
        job, project = self.new_job(plugin="echo@1.0.0", action="to_task"), self.new_project(tasks)
        fields = {"job": job, "plugin": "echo@1.0.0", "tenant": tenant}
        fields["params"] = self.to_task_params(project, **params)
        self.publish(ToTaskMessage.model_validate(fields))
        return job, project

    def messages_at(self, broker_url: str) -> int:
        """Messages in the queues of one of the two brokers, and those that a worker has not acknowledged."""
        queues = RedisQueues(broker_url, self.redis) if broker_url == self.redis_url else self.rabbitmq
        return queues.message_count(ALL_QUEUES.split(","))

    def is_waiting_for(self, job: str, what: str) -> bool:
        return what in self.run_record(job).get("waiting_for", "")


@pytest.fixture(params=["redis", "rabbitmq"])
def harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ChangeHarness]:
    """By the broker from which it is changed."""
    harness = ChangeHarness(tmp_path, request.param)
    try:
        yield harness
    finally:
        harness.close()


def test_runs_go_on_at_the_new_broker(harness: ChangeHarness) -> None:
    # Given at the old broker two runs under way, one that waits for its share, and one for a pre-processor
    release = harness.state.value("SELECT id FROM plugin_releases WHERE code = 'echo'")
    deployment = int(harness.new_job(plugin="echo@1.0.0", action="deployment", status="RUNNING"))

    def run_plugin(request: Request) -> Response:
        is_inference = json.loads(request.body)["action"] == "inference"
        return Response(*((200, b'{"label": 1}') if is_inference else (201, b'{"id": %d}' % deployment)))

    worker = harness.start_worker_at(harness.old)
    with harness.proxy.intercept("POST", "/plugins/echo", run_plugin):
        with harness.proxy.delay("PUT", WRITE, 0.5):
            runs = [harness.publish_run("acme", 150) for _ in range(3)]
            runs.append(harness.publish_run("other", 8, method="inference", pre_processor=release, model=1))
            jobs = [job for job, _ in runs]
            harness.wait_for(
                lambda: sum(harness.is_waiting_for(job, "of its tenant") for job in jobs) == 1, "the share"
            )
            harness.wait_for(lambda: harness.is_waiting_for(jobs[3], "pre-processor"), "the waiting list")
            harness.wait_for(
                lambda: sum(sum(harness.write_counts(project)) > 0 for _, project in runs) == 2, "two runs"
            )

            # When its worker is stopped, and another one is started at the new broker
            worker.stop()
            assert "SUCCEEDED" not in [harness.job(job)["status"] for job in jobs]
            harness.start_worker_at(harness.new)
        runs.append(harness.publish_run("third", 3))
        columns = {
            "job": deployment,
            "application": "echo@1.0.0",
            "status": "RUNNING",
            "created": time.time(),
        }
        harness.state.insert("serve_applications", columns)

        # Then all end, and each task was annotated once
        ends = [harness.wait_for_end(job, SECONDS_TO_GO_ON) for job, _ in runs]
    assert [end["status"] for end in ends] == ["SUCCEEDED"] * 5
    assert [harness.write_counts(project) for _, project in runs] == [
        [1] * len(project.tasks) for _, project in runs
    ]
    assert [harness.final_statuses(job) for job, _ in runs] == [["SUCCEEDED"]] * 5


def test_unread_messages_wait_for_a_worker_there(harness: ChangeHarness) -> None:
    # Given a message that nobody has read when the broker is changed
    harness.broker_url = harness.old
    job, project = harness.publish_run("acme", 3)
    harness.start_worker_at(harness.new)
    assert harness.messages_at(harness.old) == 1

    # When one more worker is started at the old broker
    harness.start_worker_at(harness.old)

    # Then the run ends, and the old broker has no message any more
    assert harness.wait_for_end(job, SECONDS_TO_GO_ON)["status"] == "SUCCEEDED"
    assert harness.write_counts(project) == [1] * 3
    harness.wait_for(lambda: harness.messages_at(harness.old) == 0, "the end of the last message", 20)
