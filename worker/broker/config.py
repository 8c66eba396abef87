"""What the Celery app is told of its broker, each with its reason; and the check of this machine's clock."""

import ssl
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import structlog

from worker.settings import Settings

QUEUES = ("deploy", "to_task", "annotate", "logs", "control")
"""All that the workers of an installation consume between them."""
REDIS_SCHEMES = ("redis://", "rediss://", "unix://", "redis+socket://")


def broker_url(url: str) -> str:
    """The URL as kombu reads it: what is `unix://…?db=3` everywhere else is `redis+socket://…` there.

    Kombu passes over `db`, and the queues would be in another database than the rest.
    """
    if not url.startswith(("unix://", "redis+socket://")):
        return url
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    query["virtual_host"] = query.pop("db", query.get("virtual_host", "0"))
    return f"redis+socket://{parts.netloc}{parts.path}?{urlencode(query)}"


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
    if url.startswith(REDIS_SCHEMES):
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


log = structlog.get_logger(__name__)

WARN_SECONDS = 0.5
REFUSE_SECONDS = 5.0


class ClockOffError(RuntimeError):
    """This machine's clock is too far from Redis's; the message says by how much."""


def offset(server_time: Callable[[], tuple[int, int]], *, clock: Callable[[], float] = time.time) -> float:
    """Seconds by which this machine's clock is ahead; the time that the answer took is no error."""
    asked = clock()
    seconds, micros = server_time()
    answered = clock()
    server = seconds + micros / 1_000_000
    if server > answered:
        return answered - server
    return max(0.0, asked - server)


def check_clock(
    server_time: Callable[[], tuple[int, int]], *, clock: Callable[[], float] = time.time
) -> float:
    """Warn when the clock is off, raise `ClockOffError` when it is off too far; returns by how much."""
    off = offset(server_time, clock=clock)
    if abs(off) > REFUSE_SECONDS:
        direction = "ahead of" if off > 0 else "behind"
        raise ClockOffError(
            f"This machine's clock is {abs(off):.1f} s {direction} Redis's; set it (NTP), at most"
            f" {REFUSE_SECONDS:g} s are borne."
        )
    if abs(off) > WARN_SECONDS:
        log.warning("clock differs from Redis's", seconds_ahead=round(off, 3))
    return off
