"""Only Redis gets the other transport, only publishers wait for confirms, and URLs are shown as they are."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from kombu import Connection as KombuConnection
from kombu.transport import pyamqp

from shared.redis_url import read_redis_url
from worker.broker import AMQP, Connection, broker_settings, broker_url
from worker.broker.transport import Channel, Transport


def settings(url: str) -> Any:
    return SimpleNamespace(broker_url=url, worker_visibility_timeout_seconds=60)


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:6379/0", "redis://user:pw@h:1/2", "rediss://h:6380/1?ssl_cert_reqs=required"]
)
def test_redis_url_selects_the_transport_and_stays_as_it_is(url: str) -> None:
    connection = Connection(url)
    assert connection.get_transport_cls() is Transport
    assert connection.clone().get_transport_cls() is Transport
    stock = KombuConnection(url)
    assert connection.as_uri() == stock.as_uri()
    assert connection.as_uri(include_password=True) == stock.as_uri(include_password=True)
    assert connection.ssl == stock.ssl


def test_rabbitmq_keeps_its_transport() -> None:
    assert Connection("amqp://guest@h//").get_transport_cls() is pyamqp.Transport
    found = broker_settings(settings("amqp://guest@h//"))
    assert "broker_transport_options" not in found
    assert found["worker_consumer"] == "worker.broker.consumer:Consumer"
    # Else the event loop and a thread read the same connection after an outage.
    assert found["worker_enable_prefetch_count_reduction"] is False


def test_only_task_publishers_use_confirms() -> None:
    # Given an application on RabbitMQ
    app = Celery("x", broker="amqp://guest@h//", amqp="worker.broker:AMQP", set_as_current=False)
    app.conf.update(broker_settings(settings("amqp://guest@h//")))

    # Then its task messages are confirmed, and its events, which the consumer's loop sends, are not
    assert app.producer_pool.connections.connection.transport_options == {"confirm_publish": True}
    assert app.connection_for_write().transport_options == {}
    assert app.connection_for_read().transport_options == {}


def test_application_selects_it_with_one_argument() -> None:
    app = Celery("x", broker="redis://h:1/2", amqp="worker.broker:AMQP", set_as_current=False)
    assert isinstance(app.amqp, AMQP)
    assert app.connection_for_read().get_transport_cls() is Transport
    assert app.connection_for_write().get_transport_cls() is Transport


@pytest.mark.parametrize(
    "url",
    [
        "unix://:hush-socket@/run/redis.sock",
        "redis+socket://:hush-socket@/run/redis.sock",
        "unix:///run/redis.sock?password=hush-socket",
    ],
)
def test_password_of_a_socket_is_not_shown_to_monitors(url: str) -> None:
    connection = Connection(broker_url(url))

    assert "hush" not in repr(connection.info())
    assert "hush" not in connection.as_uri()
    assert "hush" in connection.clone().hostname


@pytest.mark.parametrize("query", ["", "protocol=3", "protocol=3&decode_responses=True"])
@pytest.mark.parametrize("address", ["redis://h/0?", "unix:///run/r.sock?", "sentinel://h?master_name=m&"])
def test_url_cannot_change_what_the_transport_reads(
    monkeypatch: pytest.MonkeyPatch, address: str, query: str
) -> None:
    # Given a channel of a URL with options for its answers
    monkeypatch.setattr(Channel, "__init__", lambda _: None)
    channel = Channel()
    channel.redis_url = read_redis_url(f"{address}{query}")

    # Then its connections speak the version that it reads, and leave the answers as bytes
    options = channel._get_pool().connection_kwargs
    assert options["protocol"] == 2
    assert not options.get("decode_responses")
