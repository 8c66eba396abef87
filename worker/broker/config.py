"""The Celery app's settings for its broker, each with its reason."""

from shared.redis_url import RedisUrl, is_redis_url, read_redis_url
from worker.pool import pool
from worker.runs.bulkhead import all_but_three
from worker.settings import Settings

QUEUES = ("deploy", "to_task", "annotate", "logs", "control")
"""All queues that the workers of an installation consume between them."""


def queue_limit(queue: str) -> int | None:
    """How many messages of a queue a worker holds at most: more would find no slot of the bulkhead."""
    return all_but_three(pool.threads()) if pool.worker is not None and queue == "annotate" else None


EX_CONFIG = 78
"""The exit code of a worker that cannot start with its settings."""


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
    else:
        # After an outage Celery would raise the prefetch count step by step, each time by a call to the
        # broker and its answer, from the thread that has ended a task. Where that takes what the event loop
        # reads, the worker consumes nothing any more.
        found["worker_enable_prefetch_count_reduction"] = False
    return found


def _transport_options(settings: Settings, redis_url: RedisUrl) -> dict[str, object]:
    return {
        **redis_url.transport_options,
        "visibility_timeout": settings.worker_visibility_timeout_seconds,
        # Send every second what Redis has not received; the default takes 100 s.
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        # Without timeouts a Redis that silently disappeared would not be noticed.
        "socket_timeout": 10,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 15,
    }
