"""RabbitMQ, where it is installed: a published message survives a kill of the broker."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from shared import Publisher, StopMessage
from tests.harness.brokers import session_broker
from tests.harness.rabbitmq import IS_MISSING, MISSING, RabbitMQ
from worker.broker import broker_settings
from worker.runs.publisher import send_task
from worker.sandbox.processes import clean_environment, wait_for

pytestmark = [pytest.mark.skipif(IS_MISSING, reason=MISSING), pytest.mark.timeout(300)]


@pytest.fixture
def rabbit(tmp_path: Path) -> Iterator[RabbitMQ]:
    rabbit = RabbitMQ(tmp_path)
    rabbit.start()
    try:
        yield rabbit
    finally:
        rabbit.kill()


@pytest.fixture
def url() -> Iterator[str]:
    """Of a virtual host of the session's node."""
    virtual_host = session_broker.node.new_virtual_host()
    yield virtual_host.url
    virtual_host.delete()


def client_of(url: str) -> Celery:
    """As a worker is connected."""
    given = cast(Any, SimpleNamespace(broker_url=url, worker_visibility_timeout_seconds=60))
    app = Celery("client", broker=url, amqp="worker.broker:AMQP", set_as_current=False)
    app.conf.update(task_ignore_result=True, task_publish_retry=False, **broker_settings(given))
    return app


def count(app: Celery, queue: str) -> int:
    with app.connection_for_read() as connection:
        return int(connection.default_channel.queue_declare(queue, passive=True).message_count)


def publish_until_rejected(send: Callable[[str], object]) -> int:
    """How many messages were taken."""
    deadline, taken = time.monotonic() + 30, 0
    with suppress(OperationalError, OSError):
        while time.monotonic() < deadline:
            send(str(taken))
            taken += 1
    return taken


@pytest.mark.chaos
@pytest.mark.parametrize("by", ["a worker", "the backend's publisher"])
def test_published_messages_survive_a_kill_of_the_broker(rabbit: RabbitMQ, by: str) -> None:
    # Given a publisher that publishes without a pause
    app, queue = client_of(rabbit.url()), StopMessage.queue
    publisher = Publisher(rabbit.url())
    publisher._celery.conf.task_publish_retry = False
    senders: dict[str, Callable[[str], object]] = {
        "a worker": lambda job: send_task(app, "stop", queue, {"job": job}),
        "the backend's publisher": lambda job: publisher.publish(StopMessage(job=job)),
    }

    # When the broker is killed
    killer = threading.Timer(1.0, rabbit.kill)
    killer.start()
    published = publish_until_rejected(senders[by])
    killer.join()

    # Then all messages that it confirmed are there after its restart, and at most one more
    rabbit.start()
    try:
        wait_for(lambda: count(app, queue) >= published > 0, 10, f"{published} messages")
        assert count(app, queue) - published in (0, 1)
    finally:
        publisher.close()
        app.close()


def test_no_process_of_a_node_is_left_behind(rabbit: RabbitMQ) -> None:
    # Given a node with all that it has started, Erlang's port mapper among it
    assert rabbit.process is not None
    started = [psutil.Process(pid) for pid in rabbit.process.pids()]
    assert {"epmd", "beam.smp"} <= {process.name() for process in started}

    rabbit.kill()

    assert [process for process in started if process.is_running()] == []


def test_doctor_knows_the_server_and_what_nobody_reads(url: str, tmp_path: Path) -> None:
    # Given a message in Celery's default queue, and the settings of a worker
    app = client_of(url)
    app.conf.task_default_queue = "celery"
    app.send_task("to_task", kwargs={"job": 1})
    settings = {"CELERY_BROKER_URL": url, "REDIS_URL": "redis://127.0.0.1:9/0"}
    settings |= {"SYNAPSE_HOST": "http://127.0.0.1:9", "SYNAPSE_ACCESS_TOKEN": "a-token"}
    settings |= {"PLUGINS_DIR": str(tmp_path)}

    # When the environment is checked, without all else
    command = str(Path(sys.executable).with_name("synapse-worker"))
    done = subprocess.run(
        [command, "doctor", "--json"],
        env={**clean_environment(), **settings},
        capture_output=True,
        text=True,
        check=False,
    )

    # Then the queue is fine but for that message
    found = [each for each in json.loads(done.stdout)["findings"] if each["check"] == "queue"]
    (connected,) = [each["text"] for each in found if each["status"] == "ok"]
    (warning,) = [each["text"] for each in found if each["status"] == "warning"]
    assert re.fullmatch(r"connected to RabbitMQ [\d.]+", connected)
    assert warning.startswith("1 message lies in celery, on which nobody listens: publish with queue=")
    app.close()


def test_publisher_takes_a_queue_with_priorities_as_it_is(url: str) -> None:
    # Given a queue that its operator has declared with priorities
    app, queue = client_of(url), StopMessage.queue
    with app.connection_for_write() as connection:
        connection.default_channel.queue_declare(
            queue, durable=True, auto_delete=False, arguments={"x-max-priority": 9}
        )

    # When the backend's publisher uses it
    with Publisher(url) as publisher:
        publisher.publish(StopMessage(job="1"), priority=6)

    assert count(app, queue) == 1
    app.close()
