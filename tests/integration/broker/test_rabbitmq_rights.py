"""The users that docs/rabbitmq.md describes may do what they do, and no more, on a real RabbitMQ."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from celery import Celery

from shared import Publisher, StopMessage
from shared.messages import ToTaskMessage
from tests.harness.brokers import session_broker
from tests.harness.rabbitmq import IS_MISSING, MISSING, VirtualHost
from tests.integration.safety.proxied_harness import ProxiedHarness
from worker.broker import Connection
from worker.cli.checks.rabbitmq_check import missing_rights
from worker.sandbox.processes import clean_environment, free_port, start_process, wait_for

pytestmark = [pytest.mark.skipif(IS_MISSING, reason=MISSING), pytest.mark.timeout(240)]

PAGE = Path(__file__).parents[3] / "docs" / "rabbitmq.md"
RIGHTS = ("configure", "write", "read")


def documented_rights(user: str) -> list[str]:
    """The three expressions of the page's `set_permissions` for this user."""
    (command,) = re.findall(
        rf"^rabbitmqctl set_permissions -p synapse {user} (.*?'\n)(?:rabbitmqctl|```)",
        PAGE.read_text(),
        re.MULTILINE | re.DOTALL,
    )
    return re.findall("'(.*?)'", command)


@pytest.fixture
def virtual_host() -> Iterator[VirtualHost]:
    virtual_host = session_broker.node.new_virtual_host()
    yield virtual_host
    virtual_host.delete()


def missing(virtual_host: VirtualHost, *rights: str) -> list[str]:
    with Connection(virtual_host.url_of("limited", *rights)) as connection:
        return [finding.text.partition(":")[0] for finding in missing_rights(connection)]


def test_documented_worker_publisher_and_flower_work(virtual_host: VirtualHost, tmp_path: Path) -> None:
    harness = ProxiedHarness(tmp_path)
    try:
        # Given a worker in an empty virtual host, a publisher and Flower, each with its rights
        url_of = {
            user: virtual_host.url_of(user, *documented_rights(user))
            for user in ("worker", "publisher", "celery-publisher", "flower")
        }
        harness.sandbox.start()
        harness.connect()
        worker = harness.start_worker(CELERY_BROKER_URL=url_of["worker"])
        port, log = free_port(), tmp_path / "flower.log"
        environ = {
            **clean_environment(),
            **harness.sandbox.environment(),
            "CELERY_BROKER_URL": url_of["flower"],
        }
        environ["FLOWER_UNAUTHENTICATED_API"] = "true"
        command = [f"--port={port}", "--address=127.0.0.1", f"--db={tmp_path / 'flower.db'}"]
        command = [sys.executable, "-m", "celery", "-A", "worker", "flower", *command]
        flower = start_process("flower", command, log=log, env=environ)

        # When each does its work
        job, project = harness.new_job(plugin="echo@1.0.0", action="to_task"), harness.new_project(3)
        params = harness.to_task_params(project)
        fields = {"job": job, "plugin": "echo@1.0.0", "params": params}
        with Publisher(url_of["publisher"]) as publisher:
            publisher.publish(ToTaskMessage.model_validate(fields))
        with Celery("bare", broker=url_of["celery-publisher"], set_as_current=False) as bare:
            bare.send_task("stop", kwargs={"job": "no-such-job"}, queue="control")
        address = f"http://127.0.0.1:{port}/api/workers"

        def workers_in_flower() -> bool:
            try:
                answer = httpx.get(address, params={"refresh": "1"}, timeout=10, trust_env=False)
            except httpx.TransportError:
                return False
            return answer.is_success and bool(answer.json())

        # Then all of it is done, and RabbitMQ denied nothing
        assert harness.wait_for_end(job)["status"] == "SUCCEEDED"
        try:
            wait_for(workers_in_flower, 60, "the worker in Flower")
        finally:
            flower.kill()
        assert "ACCESS_REFUSED" not in worker.log.read_text() + log.read_text()
    finally:
        harness.close()


def test_documented_worker_lacks_nothing(virtual_host: VirtualHost) -> None:
    assert missing(virtual_host, *documented_rights("worker")) == []


def test_publisher_may_not_read_a_queue(virtual_host: VirtualHost) -> None:
    with Publisher(virtual_host.url) as publisher:
        publisher.publish(StopMessage(job="1"))

    with (
        Connection(virtual_host.url_of("publisher", *documented_rights("publisher"))) as connection,
        pytest.raises(connection.channel_errors, match="control"),
    ):
        connection.default_channel.basic_get("control")


@pytest.mark.parametrize(
    ("right", "part", "name"),
    [
        ("configure", "celeryev|", "celeryev"),
        ("configure", "annotate|", "annotate"),
        ("write", "amq[.]default|", "amq.default"),
        ("write", "celeryev|", "celeryev"),
        ("read", "to_task|", "to_task"),
    ],
)
def test_missing_right_is_named(virtual_host: VirtualHost, right: str, part: str, name: str) -> None:
    rights = documented_rights("worker")
    number = RIGHTS.index(right)
    assert part in rights[number]
    rights[number] = rights[number].replace(part, "")

    assert missing(virtual_host, *rights) == [f"the user lacks the right to {right} {name}"]


def test_doctors_look_at_rights_changes_nothing(virtual_host: VirtualHost) -> None:
    # Given a queue with a message, beside which the others are missing
    with Publisher(virtual_host.url) as publisher:
        publisher.publish(StopMessage(job="1"))

    missing(virtual_host, *documented_rights("worker"))

    assert virtual_host.message_count(["control"]) == 1
    with Connection(virtual_host.url) as connection, pytest.raises(connection.channel_errors):
        connection.default_channel.queue_declare("deploy", passive=True)
