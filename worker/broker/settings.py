"""What the Celery app is told of its broker, each with its reason."""

import ssl
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from worker.settings import Settings


def broker_url(url: str) -> str:
    """The URL as kombu writes it: a socket is `redis+socket://` there and `unix://` everywhere else."""
    if not url.startswith("unix://"):
        return url
    parts = urlsplit(url)
    database = dict(parse_qsl(parts.query)).get("db", "0")
    login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return f"redis+socket://{login}{parts.path}?virtual_host={database}"


def broker_settings(settings: Settings) -> dict[str, Any]:
    """Settings for `app.conf`; the transport itself comes with `Celery(amqp="worker.broker:AMQP")`."""
    found: dict[str, Any] = {
        # Bad messages, lost brokers and shutdown are dealt with there, on RabbitMQ too.
        "worker_consumer": "worker.broker.consumer:Consumer",
        # A worker outlives its broker, however long that is away, at its start too.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # Redis may refuse for a while without being away: read-only replica, full disk or memory.
        "broker_channel_error_retry": True,
    }
    url = settings.broker_url
    if url.startswith(("redis://", "rediss://", "unix://")):
        found["broker_transport_options"] = _transport_options(settings)
    if url.startswith("rediss://"):
        # Stock kombu checks no certificate unless the URL says so; the other clients of this Redis do.
        found["broker_use_ssl"] = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    return found


def _transport_options(settings: Settings) -> dict[str, Any]:
    return {
        "visibility_timeout": settings.worker_visibility_timeout_seconds,
        # Look for what dead workers held every second; the default takes 100 s more.
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        # A Redis that has gone without a word is noticed.
        "socket_timeout": 10,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 15,
    }
