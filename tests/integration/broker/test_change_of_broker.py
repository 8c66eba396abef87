"""The broker is changed from Redis to RabbitMQ, or back: runs go on, and what nobody has read waits."""

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
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
from worker.to_task.ledger import done_key

pytestmark = [
    pytest.mark.skipif(IS_MISSING, reason=MISSING),
    pytest.mark.redis_queues("these tests have both"),
    pytest.mark.chaos,
    pytest.mark.timeout(300),
]

WRITE = r"/tasks/\d+/annotate"
SECONDS_TO_GO_ON = 60
"""A run goes on once its heartbeat is overdue, here after 20 s, and a sweep has looked."""
SECONDS_OF_A_KILL = 5
"""What a killed worker has sent is received by then, and its runs do not go on so soon."""
Run = tuple[str, SeededProject]


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

    def publish_run(self, tenant: str, tasks: int, **params: object) -> Run:
        job, project = self.new_job(plugin="echo@1.0.0", action="to_task"), self.new_project(tasks)
        fields = {"job": job, "plugin": "echo@1.0.0", "tenant": tenant}
        fields["params"] = self.to_task_params(project, **params)
        self.publish(ToTaskMessage.model_validate(fields))
        return job, project

    def pre_processor(self) -> AbstractContextManager[None]:
        """A pre-processor that a job of the backend deploys, and that answers once it runs."""
        self.deployment = int(self.new_job(plugin="echo@1.0.0", action="deployment", status="RUNNING"))

        def run_plugin(request: Request) -> Response:
            if json.loads(request.body)["action"] == "inference":
                return Response(200, b'{"label": 1}')
            return Response(201, b'{"id": %d}' % self.deployment)

        return self.proxy.intercept("POST", "/plugins/echo", run_plugin)

    def let_pre_processor_run(self) -> None:
        columns = {
            "job": self.deployment,
            "application": "echo@1.0.0",
            "status": "RUNNING",
            "created": time.time(),
        }
        self.state.insert("serve_applications", columns)

    def publish_runs_under_way(self) -> list[Run]:
        """Two runs that annotate, one that waits for its share, and at last one for the pre-processor."""
        runs = [self.publish_run("acme", 150) for _ in range(3)]
        release = self.release_id("echo")
        runs.append(self.publish_run("other", 8, method="inference", pre_processor=release, model=1))
        jobs = [job for job, _ in runs]
        self.wait_for(
            lambda: sum(self.is_waiting_for(job, "of its tenant") for job in jobs) == 1, "the share"
        )
        self.wait_for(lambda: self.is_waiting_for(jobs[3], "pre-processor"), "the waiting list")
        self.wait_for(
            lambda: sum(sum(self.write_counts(project)) > 0 for _, project in runs) == 2, "two runs"
        )
        return runs

    def recorded_tasks(self, runs: list[Run]) -> int:
        """Tasks of which the outcome is in Redis."""
        return sum(self.redis.bitcount(done_key(job)) for job, _ in runs)

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
    worker = harness.start_worker_at(harness.old)
    with harness.pre_processor():
        with harness.proxy.delay("PUT", WRITE, 0.5):
            runs = harness.publish_runs_under_way()

            # When its worker is stopped, and another one is started at the new broker
            worker.stop()
            assert "SUCCEEDED" not in [harness.job(job)["status"] for job, _ in runs]
            harness.start_worker_at(harness.new)
        runs.append(harness.publish_run("third", 3))
        harness.let_pre_processor_run()

        # Then all end, and each task was annotated once
        ends = [harness.wait_for_end(job, SECONDS_TO_GO_ON) for job, _ in runs]
    assert [end["status"] for end in ends] == ["SUCCEEDED"] * 5
    assert [harness.write_counts(project) for _, project in runs] == [
        [1] * len(project.tasks) for _, project in runs
    ]
    assert [harness.final_statuses(job) for job, _ in runs] == [["SUCCEEDED"]] * 5


def test_runs_of_a_killed_worker_go_on_at_the_new_broker(harness: ChangeHarness) -> None:
    # Given the same runs at the old broker, and a worker at the new one beside that of the old one
    harness.start_worker_at(harness.new)
    worker = harness.start_worker_at(harness.old)
    with harness.pre_processor():
        with harness.proxy.delay("PUT", WRITE, 0.5):
            runs = harness.publish_runs_under_way()

            # When the old worker is killed, and one more message comes to the old broker
            worker.kill()
            killed, recorded = time.time(), harness.recorded_tasks(runs)
            assert "SUCCEEDED" not in [harness.job(job)["status"] for job, _ in runs]
        late = harness.publish_run("third", 3)
        harness.let_pre_processor_run()

        # Then its runs end, and nothing was repeated of which it had recorded the outcome
        ends = [harness.wait_for_end(job, SECONDS_TO_GO_ON) for job, _ in runs]
        counts = [harness.write_counts(project) for _, project in runs]
        sent = [
            each for each in harness.proxy.requests("PUT", WRITE) if each.began < killed + SECONDS_OF_A_KILL
        ]
        assert [end["status"] for end in ends] == ["SUCCEEDED"] * 4
        assert [min(each) for each in counts] == [1] * 4
        assert sum(map(sum, counts)) - sum(map(len, counts)) <= len(sent) - recorded
        assert harness.messages_at(harness.old) > 0

        # And an old worker that is started again reads what is left, and repeats nothing
        harness.start_worker_at(harness.old)
        assert harness.wait_for_end(late[0], SECONDS_TO_GO_ON)["status"] == "SUCCEEDED"
        harness.wait_for(lambda: harness.messages_at(harness.old) == 0, "the end of the last message", 30)
    assert [harness.write_counts(project) for _, project in runs] == counts
    assert [harness.final_statuses(job) for job, _ in [*runs, late]] == [["SUCCEEDED"]] * 5


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
