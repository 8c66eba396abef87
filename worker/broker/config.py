"""The Celery app's settings for its broker, each with its reason, and the check of this machine's clock."""

import ssl
import time
from collections.abc import Callable
from urllib.parse import parse_qsl, urlencode, urlsplit

import structlog

from worker.settings import Settings

log = structlog.get_logger(__name__)

QUEUES = ("deploy", "to_task", "annotate", "logs", "control")
"""All queues that the workers of an installation consume between them."""
REDIS_SCHEMES = ("redis://", "rediss://", "unix://", "redis+socket://")

WARN_OFFSET_SECONDS = 0.5
MAX_OFFSET_SECONDS = 5.0


def broker_url(url: str) -> str:
    """The URL in kombu's form: what is `unix://…?db=3` for all other clients is `redis+socket://…` for kombu.

    Kombu ignores `db`, and the queues would be in another database than everything else.
    """
    if not url.startswith(("unix://", "redis+socket://")):
        return url
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    query["virtual_host"] = query.pop("db", query.get("virtual_host", "0"))
    return f"redis+socket://{parts.netloc}{parts.path}?{urlencode(query)}"


def broker_settings(settings: Settings) -> dict[str, object]:
    """Settings for `app.conf`; the transport itself is selected by `Celery(amqp="worker.broker:AMQP")`."""
    found: dict[str, object] = {
        # The consumer handles bad messages, lost brokers and shutdown, on RabbitMQ too.
        "worker_consumer": "worker.broker.consumer:Consumer",
        # A worker waits for its broker however long that is away, at its start too.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # Redis may reject commands for a while although it is there: read-only replica, full disk or memory.
        "broker_channel_error_retry": True,
    }
    url = settings.broker_url
    if url.startswith(REDIS_SCHEMES):
        found["broker_transport_options"] = _transport_options(settings)
    if url.startswith("rediss://"):
        # Stock kombu checks no certificate unless the URL says so; the other clients of this Redis do.
        found["broker_use_ssl"] = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    return found


def _transport_options(settings: Settings) -> dict[str, object]:
    return {
        "visibility_timeout": settings.worker_visibility_timeout_seconds,
        # Look every second for messages that dead workers held; the default takes 100 s more.
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        # Without timeouts a Redis that silently disappeared would not be noticed.
        "socket_timeout": 10,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 15,
    }


class ClockOffsetError(RuntimeError):
    """This machine's clock differs too much from Redis's; the message says by how much."""


def clock_offset(
    server_time: Callable[[], tuple[int, int]], *, clock: Callable[[], float] = time.time
) -> float:
    """Seconds by which this machine's clock is ahead; the duration of the request counts as no offset."""
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
    """Warn about a clock that is off, raise `ClockOffsetError` when it is off too far; return the offset.

    `server_time` is Redis's TIME: seconds and microseconds.
    """
    ahead = clock_offset(server_time, clock=clock)
    if abs(ahead) > MAX_OFFSET_SECONDS:
        direction = "ahead of" if ahead > 0 else "behind"
        raise ClockOffsetError(
            f"This machine's clock is {abs(ahead):.1f} s {direction} Redis's; set it (NTP): at most"
            f" {MAX_OFFSET_SECONDS:g} s are allowed."
        )
    if abs(ahead) > WARN_OFFSET_SECONDS:
        log.warning("clock differs from Redis's", seconds_ahead=round(ahead, 3))
    return ahead
