"""Settings of the broker, and its URLs."""

import ssl
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from worker.broker import Connection, broker_settings, broker_url
from worker.broker.transport import Transport


def settings(url: str) -> Any:
    return SimpleNamespace(broker_url=url, worker_visibility_timeout_seconds=60)


def test_redis_settings_follow_the_visibility_timeout() -> None:
    options = broker_settings(settings("redis://h:1/0"))["broker_transport_options"]
    assert options["visibility_timeout"] == 60
    assert options["unacked_restore_interval"] == options["unacked_restore_throttle"] == 1
    assert broker_settings(settings("rediss://h:1/0"))["broker_use_ssl"] == {
        "ssl_cert_reqs": ssl.CERT_REQUIRED
    }


def test_socket_url_is_written_as_kombu_reads_it(tmp_path: Path) -> None:
    assert broker_url("redis://h:1/0") == "redis://h:1/0"
    url = broker_url(f"unix://{tmp_path}/redis.sock?db=3")
    assert url == broker_url(url) == f"redis+socket://{tmp_path}/redis.sock?virtual_host=3"
    assert Connection(url).get_transport_cls() is Transport
