"""A consumer leaves a connection on which nothing arrives any more, as after the fail-over of a balancer."""

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import kombu
import pytest
from kombu.asynchronous import Hub

from worker.broker import Connection
from worker.sandbox.servers import RedisServer

OPTIONS = {"health_check_interval": 2, "socket_timeout": 2}
MAX_SECONDS = 30.0
IDLE_SECONDS = 2.0
"""So long the consumer has been idle when its connections go dead: it has settled to wait."""


class FreezableProxy:
    """Forwards connections to a port; those that are open when it freezes stay open, and carry nothing."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._frozen = [threading.Event()]
        self._closed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """Drop all that is sent on the connections that are open now."""
        before, self._frozen[0] = self._frozen[0], threading.Event()
        before.set()

    def close(self) -> None:
        """Accept nothing more, and close all connections."""
        self._closed.set()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                arguments = (near, far, self._frozen[0])
                threading.Thread(target=self._forward, args=arguments, daemon=True).start()

    def _forward(self, near: socket.socket, far: socket.socket, frozen: threading.Event) -> None:
        with near, far, suppress(OSError):
            while not self._closed.is_set():
                for ready in select.select([near, far], [], [], 0.1)[0]:
                    if not (data := ready.recv(65_536)):
                        return
                    if not frozen.is_set():
                        (far if ready is near else near).sendall(data)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[FreezableProxy]:
    proxy = FreezableProxy(server.port)
    yield proxy
    proxy.close()


def publish(server: RedisServer) -> None:
    """Publish a message past the proxy."""
    with kombu.Connection(server.url) as publisher:
        publisher.Producer(serializer="json").publish("hello", routing_key="first")


class Waits:
    """Runs a connection's consumer, without an event loop or with one, until it has received something."""

    def __init__(self, connection: Connection, received: list[Any]) -> None:
        self._connection, self._received = connection, received

    def drain(self, seconds: float) -> None:
        """Call `drain_events`."""
        deadline = time.monotonic() + seconds
        while not self._received and time.monotonic() < deadline:
            with suppress(TimeoutError):
                self._connection.drain_events(timeout=0.5)

    def loop(self, seconds: float) -> None:
        """Run an event loop, as a worker does."""
        hub = Hub()
        try:
            self._connection.register_with_event_loop(hub)
            deadline = time.monotonic() + seconds
            hub.call_repeatedly(0.2, lambda: None)
            while not self._received and time.monotonic() < deadline:
                hub.run_once()
        finally:
            hub.close()


@pytest.mark.chaos
@pytest.mark.parametrize("method", ["drain", "loop"])
def test_idle_consumer_leaves_a_half_open_connection(
    server: RedisServer, proxy: FreezableProxy, method: str
) -> None:
    # Given an idle consumer, whose connections then carry nothing any more
    received: list[Any] = []

    def on_message(body: Any, message: Any) -> None:
        received.append(body)
        message.ack()

    queue = kombu.Queue("first")
    url = f"redis://127.0.0.1:{proxy.port}/0"
    with Connection(url, transport_options=OPTIONS) as connection:
        run = getattr(Waits(connection, received), method)
        with kombu.Consumer(connection, [queue], callbacks=[on_message], accept=["json"]):
            run(IDLE_SECONDS)
            proxy.freeze()
            run(0.5)

            # When a message is published past the dead connections
            publish(server)
            run(MAX_SECONDS)

    # Then it is received within seconds, on new connections
    assert received == ["hello"]


def test_half_open_connection_closes_within_its_timeouts(proxy: FreezableProxy) -> None:
    # Given an idle consumer, whose connections then carry nothing any more
    received: list[Any] = []
    connection = Connection(f"redis://127.0.0.1:{proxy.port}/0", transport_options=OPTIONS)
    consumer = kombu.Consumer(connection, [kombu.Queue("first")], accept=["json"])
    consumer.consume()
    Waits(connection, received).drain(IDLE_SECONDS)
    proxy.freeze()
    Waits(connection, received).drain(1.5)

    # When it is closed
    begun = time.monotonic()
    with suppress(*connection.connection_errors):
        connection.close()

    # Then that takes a few timeouts of its sockets at most
    assert time.monotonic() - begun < 4 * OPTIONS["socket_timeout"]
