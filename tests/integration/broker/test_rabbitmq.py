"""RabbitMQ, where it is installed: a published message survives a kill of the broker."""

import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from shared import Publisher, StopMessage
from worker.broker import broker_settings
from worker.runs.publisher import send_task
from worker.sandbox.processes import Process, free_port, start_process, wait_for

# Debian puts a script on the PATH that runs the server as another user, who may not enter this test's folder.
SERVER = shutil.which("rabbitmq-server", path="/usr/lib/rabbitmq/bin") or shutil.which("rabbitmq-server")

pytestmark = [
    pytest.mark.skipif(SERVER is None, reason="there is no rabbitmq-server"),
    pytest.mark.timeout(300),
]


class RabbitMQ:
    """A server of this test's own, which keeps what it has over a kill."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self._port}//"
        self._environment = {
            "HOME": str(folder),
            "ERL_CRASH_DUMP_BYTES": "0",
            "RABBITMQ_NODENAME": f"test{self._port}@localhost",
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "ERL_EPMD_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "none"),
        }

    def start(self) -> Process:
        log = self._folder / "server.log"
        process = start_process("rabbitmq", [str(SERVER)], log=log, env=self._environment)
        process.wait_until(self._is_up, 120)
        return process

    def client(self) -> Celery:
        """As a worker is connected."""
        given = cast(Any, SimpleNamespace(broker_url=self.url, worker_visibility_timeout_seconds=60))
        app = Celery("client", broker=self.url, amqp="worker.broker:AMQP", set_as_current=False)
        app.conf.update(task_ignore_result=True, task_publish_retry=False, **broker_settings(given))
        return app

    def count(self, queue: str) -> int:
        with self.client().connection_for_read() as connection:
            found = connection.default_channel.queue_declare(queue, passive=True)
            return int(found.message_count)

    def _is_up(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1) as probe:
            probe.sendall(b"AMQP\x00\x00\x09\x01")
            return bool(probe.recv(1))
        return False


@pytest.fixture
def rabbit(tmp_path: Path) -> RabbitMQ:
    return RabbitMQ(tmp_path)


def publish_until_rejected(send: Callable[[str], object]) -> int:
    """How many messages were taken."""
    deadline, taken = time.monotonic() + 30, 0
    with suppress(OperationalError, OSError):
        while time.monotonic() < deadline:
            send(str(taken))
            taken += 1
    return taken


@pytest.mark.parametrize("by", ["a worker", "the backend's publisher"])
def test_published_messages_survive_a_kill_of_the_broker(rabbit: RabbitMQ, by: str) -> None:
    # Given a publisher that publishes without a pause
    server, app, queue = rabbit.start(), rabbit.client(), StopMessage.queue
    publisher = Publisher(rabbit.url)
    publisher._celery.conf.task_publish_retry = False
    senders: dict[str, Callable[[str], object]] = {
        "a worker": lambda job: send_task(app, "stop", queue, {"job": job}),
        "the backend's publisher": lambda job: publisher.publish(StopMessage(job=job)),
    }

    # When the broker is killed
    killer = threading.Timer(1.0, server.kill)
    killer.start()
    published = publish_until_rejected(senders[by])
    killer.join()

    # Then all messages that it confirmed are there after its restart, and at most one more
    again = rabbit.start()
    try:
        wait_for(lambda: rabbit.count(queue) >= published > 0, 10, f"{published} messages")
        assert rabbit.count(queue) - published in (0, 1)
    finally:
        publisher.close()
        app.close()
        again.kill()
