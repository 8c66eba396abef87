"""What Redis says of all workers, for Prometheus: runs, waiting lists, queues, dead letters."""

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import structlog
from celery import bootsteps
from prometheus_client.core import GaugeMetricFamily, Metric
from redis import Redis, RedisError

from shared.channels import dead_letters_key
from shared.messages import DeployMessage
from shared.redis_pools import sharing_connections
from shared.redis_url import is_redis_url, read_redis_url
from shared.statuses import JobStatus
from worker.broker.config import QUEUES
from worker.broker.queues import DEFAULT_QUEUE, held_messages, queue_lengths
from worker.metrics import NAMESPACE
from worker.pre_processor.waitlist import waiting_runs
from worker.runs.keys import ended_runs_key, heartbeats_key, outbox_key, webhooks_key
from worker.settings import Settings, settings

log = structlog.get_logger(__name__)

TIMEOUT_SECONDS = 3.0
ENDS = tuple(status for status in JobStatus if status.is_final)


class RedisMetrics:
    """What Redis says of all workers together: every worker shows the same, so take `max`, never `sum`.

    Each look costs a few commands, whose number grows with the pre-processors for which runs wait.
    """

    def __init__(self, redis: "Redis", queues: "Queues | None") -> None:
        """`queues`: those of a broker that is a Redis; None for RabbitMQ, which shows its queues itself."""
        self._redis = redis
        self._queues = queues

    def collect(self) -> Iterable[Metric]:
        """The gauges; `redis_up` alone is 0 while Redis is away."""
        with sharing_connections():
            return self._collect()

    def _collect(self) -> list[Metric]:
        up = _gauge("redis_up", "1 while Redis answers.")
        ping = _gauge("redis_ping_seconds", "Seconds that Redis took to answer a PING.")
        found: list[Metric] = []
        began = time.monotonic()
        try:
            self._redis.ping()
            ping.add_metric([], time.monotonic() - began)
            found = [ping, *self._runs(), *(self._queues.collect() if self._queues else ())]
        except RedisError as error:
            log.warning("metrics of Redis not read", error_type=type(error).__name__)
        up.add_metric([], 1.0 if found else 0.0)
        return [up, *found]

    def _runs(self) -> Iterator[Metric]:
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(heartbeats_key()).zcard(outbox_key()).zcard(webhooks_key()).xlen(dead_letters_key())
            for status in ENDS:
                pipe.zcard(ended_runs_key(status))
            live, reports, webhooks, dead_letters, *ended = pipe.execute()
        waiting = _gauge("runs_waiting", "Runs that wait for a pre-processor.", "agent", "pre_processor")
        lists = waiting_runs(self._redis)
        for name, count in lists.items():
            waiting.add_metric([str(name.agent), name.target.release], count)
        yield waiting
        with self._redis.pipeline(transaction=False) as pipe:
            for name in lists:
                pipe.zscore(heartbeats_key(), name.member)
            polled = sum(score is not None for score in pipe.execute())
        yield _value("runs_live", "Runs that have not ended.", live - polled)
        kept = _gauge("ended_runs", "Runs that have ended and are kept.", "status")
        for status, count in zip(ENDS, ended, strict=True):
            kept.add_metric([status], count)
        yield kept
        yield _value("reports_due", "Jobs whose state or end the backend does not have yet.", reports)
        yield _value("webhooks_due", "Jobs whose end the webhook does not have yet.", webhooks)
        yield _value("dead_letters", "Messages that could not be accepted, and are kept.", dead_letters)


class Queues:
    """The queues in a Redis."""

    def __init__(self, redis: "Redis", names: Sequence[str], keyprefix: str = "") -> None:
        """`keyprefix` is the transport's `global_keyprefix`."""
        self._redis = redis
        self._names = names
        self._keyprefix = keyprefix

    def lengths(self) -> dict[str, tuple[int, int]]:
        """How many messages of each queue wait, and how many are delayed."""
        return queue_lengths(self._redis, self._names, self._keyprefix)

    def held(self) -> int:
        """How many messages workers hold, of all queues."""
        return held_messages(self._redis, self._keyprefix)

    def disconnect(self) -> None:
        """Keep no connection until somebody asks again, which may be in a minute or never.

        Other threads may be asking: theirs stays.
        """
        self._redis.connection_pool.disconnect(inuse_connections=False)

    def stats(self) -> dict[str, object]:
        """Their lengths, for `inspect stats`. Flower's own page of the broker reads lists alone, so neither
        delayed messages nor those that workers hold."""
        lengths, held = self.lengths(), self.held()
        self.disconnect()
        return {
            "messages_waiting": {queue: waiting for queue, (waiting, _) in lengths.items()},
            "messages_delayed": {queue: delayed for queue, (_, delayed) in lengths.items()},
            "messages_held": held,
        }

    def collect(self) -> Iterator[Metric]:
        """Their lengths."""
        messages = _gauge(
            "queue_messages", "Messages by queue; delayed ones are not due yet.", "queue", "state"
        )
        for queue, (waiting, delayed) in self.lengths().items():
            messages.add_metric([queue, "waiting"], waiting)
            messages.add_metric([queue, "delayed"], delayed)
        yield messages
        yield _value("messages_held", "Messages that workers hold, of all queues.", self.held())
        self.disconnect()


def queues_of(settings: Settings) -> Queues | None:
    """The queues that the workers with these settings consume, and the one that none does."""
    return queues_at(settings.broker_url, settings.worker_agent)


def queues_at(broker_url: str, agent: int | None) -> Queues | None:
    """The same by the broker's URL and the id of the one agent that the workers serve; None for RabbitMQ."""
    if not is_redis_url(broker_url):
        return None
    names = [*QUEUES, *([f"{DeployMessage.queue}.{agent}"] if agent else []), DEFAULT_QUEUE]
    address = read_redis_url(broker_url)
    redis = address.client(socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS)
    return Queues(redis, names, address.global_keyprefix)


class QueueStatsStep(bootsteps.StartStopStep):
    """Adds the messages of all queues to what a worker answers to `inspect stats`, which Flower shows."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._queues = queues_of(settings())

    def info(self, obj: Any) -> dict[str, object]:  # noqa: ARG002 - the bootstep's signature
        """Nothing while Redis is away, or where the queues are in RabbitMQ, which counts them itself."""
        try:
            return self._queues.stats() if self._queues else {}
        except RedisError as error:
            log.warning("messages not counted", error_type=type(error).__name__)
            return {}


def _gauge(name: str, help_: str, *labels: str) -> Any:
    return GaugeMetricFamily(f"{NAMESPACE}_{name}", help_, labels=labels)


def _value(name: str, help_: str, value: float) -> Metric:
    return GaugeMetricFamily(f"{NAMESPACE}_{name}", help_, value=value)
