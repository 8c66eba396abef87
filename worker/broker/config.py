"""The Celery app's settings for its broker, each with its reason, and the check of this machine's clock."""

import time
from collections.abc import Callable

import structlog

from shared.redis_url import RedisUrl, is_redis_url, read_redis_url
from worker.settings import Settings

log = structlog.get_logger(__name__)

QUEUES = ("deploy", "to_task", "annotate", "logs", "control")
"""All queues that the workers of an installation consume between them."""

EX_CONFIG = 78
"""The exit code of a worker that cannot start with its settings."""

WARN_OFFSET_SECONDS = 0.5
MAX_OFFSET_SECONDS = 5.0


def broker_url(url: str) -> str:
    """The URL in kombu's form; what kombu does not read in it is in the transport's options."""
    return read_redis_url(url).broker_url if is_redis_url(url) else url


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
    if is_redis_url(url):
        redis_url = read_redis_url(url)
        # Celery prefers the environment's CELERY_BROKER_URL to the address that it is given.
        found["broker_read_url"] = found["broker_write_url"] = redis_url.broker_url
        found["broker_transport_options"] = _transport_options(settings, redis_url)
        if redis_url.tls_options is not None:
            # For monitors, which connect by themselves.
            found["broker_use_ssl"] = redis_url.tls_options
    return found


def _transport_options(settings: Settings, redis_url: RedisUrl) -> dict[str, object]:
    return {
        **redis_url.transport_options,
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
