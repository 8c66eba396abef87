"""URLs stay what they are; only Redis gets the other transport."""

import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from kombu import Connection as KombuConnection
from kombu.transport import pyamqp

from worker.broker import AMQP, ClockOffError, Connection, broker_settings, broker_url, check_clock
from worker.broker.transport import Transport


def settings(url: str) -> Any:
    return SimpleNamespace(broker_url=url, worker_visibility_timeout_seconds=60)


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1:6379/0", "redis://user:pw@h:1/2", "rediss://h:6380/1?ssl_cert_reqs=required"]
)
def test_redis_urls_get_our_transport_and_are_shown_as_they_are(url: str) -> None:
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


def test_only_who_publishes_tasks_waits_until_the_broker_has_confirmed_it() -> None:
    # Given an application on RabbitMQ
    app = Celery("x", broker="amqp://guest@h//", amqp="worker.broker:AMQP", set_as_current=False)
    app.conf.update(broker_settings(settings("amqp://guest@h//")))

    # Then its task messages are confirmed, and its events, which the consumer's loop sends, are not
    assert app.producer_pool.connections.connection.transport_options == {"confirm_publish": True}
    assert app.connection_for_write().transport_options == {}
    assert app.connection_for_read().transport_options == {}


def test_an_application_takes_it_with_one_argument() -> None:
    app = Celery("x", broker="redis://h:1/2", amqp="worker.broker:AMQP", set_as_current=False)
    assert isinstance(app.amqp, AMQP)
    assert app.connection_for_read().get_transport_cls() is Transport
    assert app.connection_for_write().get_transport_cls() is Transport


def test_settings_of_redis() -> None:
    options = broker_settings(settings("redis://h:1/0"))["broker_transport_options"]
    assert options["visibility_timeout"] == 60
    assert options["unacked_restore_interval"] == options["unacked_restore_throttle"] == 1
    assert broker_settings(settings("rediss://h:1/0"))["broker_use_ssl"] == {
        "ssl_cert_reqs": ssl.CERT_REQUIRED
    }


def test_a_socket_is_written_as_kombu_does(tmp_path: Path) -> None:
    assert broker_url("redis://h:1/0") == "redis://h:1/0"
    url = broker_url(f"unix://{tmp_path}/redis.sock?db=3")
    assert url == broker_url(url) == f"redis+socket://{tmp_path}/redis.sock?virtual_host=3"
    assert Connection(url).get_transport_cls() is Transport


@pytest.mark.parametrize(("ahead", "warned"), [(0.0, False), (0.4, False), (-0.8, True), (3.0, True)])
def test_a_clock_that_is_a_little_off_is_warned_of(
    ahead: float, warned: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    off = check_clock(lambda: (1_000, 0), clock=lambda: 1_000 + ahead)
    assert off == pytest.approx(ahead)
    assert ("clock differs" in capsys.readouterr().out) is warned


@pytest.mark.parametrize(("ahead", "words"), [(6.0, "6.0 s ahead of"), (-90.5, "90.5 s behind")])
def test_a_clock_that_is_far_off_is_refused(ahead: float, words: str) -> None:
    with pytest.raises(ClockOffError, match=words):
        check_clock(lambda: (1_000, 0), clock=lambda: 1_000 + ahead)


def test_a_slow_answer_is_no_error_of_the_clock() -> None:
    moments = iter([1_000.0, 1_009.0])
    assert check_clock(lambda: (1_004, 0), clock=lambda: next(moments)) == 0


@pytest.mark.parametrize(
    "url",
    [
        "unix://:hush-socket@/run/redis.sock",
        "redis+socket://:hush-socket@/run/redis.sock",
        "unix:///run/redis.sock?password=hush-socket",
    ],
)
def test_a_sockets_password_is_not_shown_to_monitors(url: str) -> None:
    connection = Connection(broker_url(url))

    assert "hush" not in repr(connection.info())
    assert "hush" not in connection.as_uri()
    assert "hush" in connection.clone().hostname
