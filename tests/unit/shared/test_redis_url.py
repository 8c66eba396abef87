"""One reader of the Redis URL for all clients."""

import json
import ssl
from typing import Any

import pytest
from celery import Celery
from redis import BlockingConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, ResponseError

from shared.redis_broker import Connection
from shared.redis_connections import TcpConnection, is_read_only
from shared.redis_url import read_redis_url

SENTINELS = "sentinel://user:p%40ss@a:1;sentinel://b/5?master_name=m&sentinel_password=hush&socket_timeout=2"


@pytest.mark.parametrize(
    ("url", "options", "broker_url"),
    [
        ("redis://h", {"host": "h"}, "redis://h:6379/0"),
        (
            "redis://u:p%40@h:1/2?socket_timeout=3&health_check_interval=7",
            {
                "host": "h",
                "port": 1,
                "db": 2,
                "username": "u",
                "password": "p@",
                "socket_timeout": 3.0,
                "health_check_interval": 7,
            },
            "redis://u:p%40@h:1/2",
        ),
        (
            "redis://h/0?username=u&password=p",
            {"host": "h", "db": 0, "username": "u", "password": "p"},
            "redis://u:p@h:6379/0",
        ),
        ("redis://[::1]:4/1", {"host": "::1", "port": 4, "db": 1}, "redis://[::1]:4/1"),
        (
            "unix:///run/r.sock?db=3",
            {"path": "/run/r.sock", "db": 3},
            "redis+socket:///run/r.sock?virtual_host=3",
        ),
        (
            "redis+socket:///run/r.sock?virtual_host=4",
            {"path": "/run/r.sock", "db": 4},
            "redis+socket:///run/r.sock?virtual_host=4",
        ),
    ],
)
def test_url_is_read_as_redis_py_does(url: str, options: dict[str, Any], broker_url: str) -> None:
    read = read_redis_url(url)

    assert read.options == options
    assert read.broker_url == broker_url
    made = read.pool(socket_timeout=1, decode_responses=True)
    expected = {"socket_timeout": 1, "decode_responses": True, **options}
    assert {name: made.connection_kwargs[name] for name in expected} == expected


@pytest.mark.parametrize("asks", ["True", "False", "0"])
@pytest.mark.parametrize("address", ["redis://h/0?", "unix:///run/r.sock?", "sentinel://h?master_name=m&"])
def test_each_client_decides_whether_it_decodes(address: str, asks: str) -> None:
    url = read_redis_url(f"{address}decode_responses={asks}")

    assert "decode_responses" not in url.pool().connection_kwargs
    for pool in (url.pool(decode_responses=True), url.async_pool(decode_responses=True)):
        assert pool.connection_kwargs["decode_responses"] is True


def test_a_text_is_read_of_whatever_redis_has() -> None:
    url = read_redis_url("redis://h")

    for pool in (url.pool(decode_responses=True), url.async_pool(decode_responses=True)):
        encoder = pool.get_encoder()
        assert encoder.encode(encoder.decode(b"run:\xff")) == b"run:\xff"
    assert "encoding_errors" not in url.pool().connection_kwargs


def test_threads_wait_for_one_of_a_limited_pool() -> None:
    limited = read_redis_url("redis://h?max_connections=20").pool()

    assert isinstance(limited, BlockingConnectionPool)
    assert limited.max_connections == 20
    assert not isinstance(read_redis_url("redis://h").pool(), BlockingConnectionPool)


def test_needed_options_win_over_the_url() -> None:
    pool = read_redis_url("redis://h/0?protocol=3&socket_timeout=2").pool(needed={"protocol": 2}, protocol=1)

    assert pool.connection_kwargs["protocol"] == 2
    assert pool.connection_kwargs["socket_timeout"] == 2.0


def test_sentinels_are_listed_with_one_set_of_options() -> None:
    read = read_redis_url(SENTINELS)

    assert read.sentinels == (("a", 1), ("b", 26379))
    assert read.master_name == "m"
    assert read.options == {"username": "user", "password": "p@ss", "db": 5, "socket_timeout": 2.0}
    assert read.broker_url == "sentinel://user:p%40ss@a:1/5"
    manager = read.pool().sentinel_manager
    assert [sentinel.connection_pool.connection_kwargs["password"] for sentinel in manager.sentinels] == [
        "hush",
        "hush",
    ]
    assert json.dumps({**read.transport_options, "redis_url": None})


def test_celerys_own_transport_options_name_the_master() -> None:
    # Given the settings that Celery's documentation has for Sentinel
    app = Celery("publisher", amqp="shared.redis_broker:AMQP", set_as_current=False)
    app.conf.update(
        broker_url="sentinel://a:1;sentinel://b:2/3",
        broker_transport_options={"master_name": "m", "sentinel_kwargs": {"password": "hush"}},
    )
    with app.connection_for_write() as connection:
        read = connection.transport_options["redis_url"]
    assert (read.sentinels, read.options["db"]) == ((("a", 1), ("b", 2)), 3)
    assert (read.master_name, read.sentinel_options) == ("m", {"password": "hush"})


def test_options_of_sentinels_are_read_as_redis_py_does() -> None:
    query = "sentinel_socket_timeout=0.5&sentinel_socket_connect_timeout=1&sentinel_health_check_interval=5"
    read = read_redis_url(
        f"sentinel://a?master_name=m&{query}&sentinel_socket_keepalive=no&sentinel_ssl=false"
    )

    assert read.sentinel_options == {
        "socket_timeout": 0.5,
        "socket_connect_timeout": 1.0,
        "health_check_interval": 5,
        "socket_keepalive": False,
        "ssl": False,
    }


def test_sentinels_with_tls_connect_with_tls() -> None:
    read = read_redis_url("sentinel://a;sentinel://b?master_name=m&ssl=true&ssl_cert_reqs=none")

    assert read.pool().connection_class.__name__ == "SentinelTlsConnection"
    assert all(
        sentinel.connection_pool.connection_class.__name__ == "SSLConnection"
        for sentinel in read.pool().sentinel_manager.sentinels
    )
    assert read.tls_options == {"ssl_cert_reqs": ssl.CERT_NONE}


@pytest.mark.parametrize(
    ("spelling", "needed"),
    [
        ("", ssl.CERT_REQUIRED),
        ("?ssl_cert_reqs=required", ssl.CERT_REQUIRED),
        ("?ssl_cert_reqs=CERT_NONE", ssl.CERT_NONE),
    ],
)
def test_certificates_are_checked_by_default(spelling: str, needed: int) -> None:
    tls_options = read_redis_url(f"rediss://h/0{spelling}").tls_options

    assert tls_options is not None
    assert tls_options["ssl_cert_reqs"] == needed


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://h", "cannot read|can read"),
        ("redis://h?socket_timeout=soon", "cannot be read: 'socket_timeout'"),
        ("redis://:p#w@h/0", "characters such as # / .* are written as %23"),
        ("redis://:a/b@h/0", "are written as %23 %2F"),
        ("redis://u:a[b@h/0", "%5B"),
        ("redis://h/abc", "names a database that is no number"),
        ("redis://h/0?db=3", "names two databases"),
        ("redis://h?retry=3", "does not work in a URL: 'retry'"),
        ("redis://h?retry_on_error=[TimeoutError]", "does not work in a URL: 'retry_on_error'"),
        ("redis://h?socket_timeout=0", "does not work in a URL: 'socket_timeout'"),
        ("redis://h?db=-1", "does not work in a URL: 'db'"),
        ("redis://h?health_check_interval=-1", "does not work in a URL: 'health_check_interval'"),
        ("redis://h?client_name=my%20worker", "does not work in a URL: 'client_name'"),
        ("redis://h?max_connections=0", "does not work in a URL: 'max_connections'"),
        ("redis://h?socket_timout=3", "does not know: 'socket_timout'"),
        ("redis://h;redis://i", "only sentinel://"),
        ("redis://h/0?master_name=m", "only sentinel://"),
        ("sentinel://h", "names no master"),
        ("sentinel://h;redis://i?master_name=m", "separated by ;"),
        ("sentinel://h?master_name=m&sentinel_socket_timeout=soon", "read: 'sentinel_socket_timeout'"),
        ("sentinel://h?master_name=m&sentinel_socket_timout=3", "does not know: 'socket_timout'"),
        ("sentinel://h?master_name=m&sentinel_protocol=9", "can read"),
        ("redis+socket:///r?virtual_host=x", "no number"),
    ],
)
def test_mistake_in_a_url_is_said(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_redis_url(url)


def test_text_of_a_url_shows_no_secret() -> None:
    assert "hush" not in repr(read_redis_url(SENTINELS))
    assert "p@ss" not in repr(read_redis_url(SENTINELS))


@pytest.mark.parametrize(
    "url", ["redis://h/1?socket_timeout=3&global_keyprefix=x:", "unix:///run/r.sock?db=1", SENTINELS]
)
def test_broker_connections_of_a_pool_keep_the_url(url: str) -> None:
    connection = Connection(url)
    pooled = connection.Pool(1).new()

    for made in (connection, connection.clone(), pooled):
        assert made.transport_options["redis_url"].options == read_redis_url(url).options
        assert made.get_transport_cls() is Connection.redis_transport


@pytest.mark.parametrize(
    ("error", "read_only"),
    [
        (ReadOnlyError("You can't write against a read only replica."), True),
        (ResponseError("Error running script (call to f_1): -READONLY You can't write against"), True),
        (ResponseError("unknown command"), False),
        (OutOfMemoryError("command not allowed"), False),
    ],
)
def test_connection_to_a_replica_is_closed(
    monkeypatch: pytest.MonkeyPatch, error: ResponseError, read_only: bool
) -> None:
    # Given a connection whose server answers with an error
    def answer(*_: Any, **__: Any) -> None:
        raise error

    closed: list[bool] = []
    monkeypatch.setattr("redis.connection.AbstractConnection.read_response", answer)
    connection = TcpConnection()
    monkeypatch.setattr(connection, "disconnect", lambda *_: closed.append(True))

    # Then it is closed, and the client connects anew, when the server is a replica
    with pytest.raises(RedisConnectionError if read_only else type(error)):
        connection.read_response()
    assert bool(closed) is is_read_only(error) is read_only
