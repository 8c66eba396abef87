"""The console's `/metrics`: what Redis says of all workers, and what the console itself does."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from starlette.requests import Request
from starlette.responses import Response

from shared.statuses import JobStatus
from worker.console.changes import ChangeListener
from worker.console.event_streams import ChangeStreams
from worker.console.log_streams import LogStreams
from worker.metrics import (
    CONSOLE_CHANGES,
    CONSOLE_CONNECTED,
    CONSOLE_RUNS,
    CONSOLE_SENDING,
    CONSOLE_STREAMS,
    NAMESPACE,
    Definition,
)
from worker.monitoring.redis_metrics import RedisMetrics

LIVE: Final = (JobStatus.PENDING, JobStatus.RUNNING)


class MetricsPage:
    """The endpoint. Runs are counted in this process's memory, so a look costs Redis some ten commands."""

    def __init__(
        self, of_redis: RedisMetrics, changes: ChangeListener, streams: ChangeStreams, logs: LogStreams
    ) -> None:
        self._of_redis = of_redis
        self._changes = changes
        self._streams = streams
        self._logs = logs

    async def metrics(self, _: Request) -> Response:
        """In Prometheus's text format."""
        own = [*self._runs(), *self._own()]  # in the event loop, which changes what they are made of
        found = await asyncio.to_thread(lambda: list(self._of_redis.collect()))
        return Response(generate_latest(_Collected([*found, *own])), media_type=CONTENT_TYPE_LATEST)

    def _runs(self) -> Iterable[Metric]:
        counts: Counter[tuple[str, str]] = Counter()
        for run in self._changes.runs.all():
            if run.is_known and not run.has_ended:
                status = run.values.get("status")
                counts[str(run.values["action"]), status if status in LIVE else "other"] += 1
        yield _family(GaugeMetricFamily, CONSOLE_RUNS, counts)

    def _own(self) -> Iterable[Metric]:
        yield GaugeMetricFamily(
            f"{NAMESPACE}_{CONSOLE_CONNECTED.name}",
            CONSOLE_CONNECTED.help,
            value=float(self._changes.published.is_connected),
        )
        streams = {("changes",): self._streams.open, ("log",): self._logs.open}
        yield _family(GaugeMetricFamily, CONSOLE_STREAMS, streams)
        heard = {(of,): self._changes.heard[of] for of in ("run", "dead_letter")}
        yield _family(CounterMetricFamily, CONSOLE_CHANGES, heard)
        sending = self._streams.sending
        yield HistogramMetricFamily(
            f"{NAMESPACE}_{CONSOLE_SENDING.name}",
            CONSOLE_SENDING.help,
            buckets=sending.cumulative(),
            sum_value=sending.sum,
        )


class _Collected:
    """What was collected already, as the library reads it."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _family(kind: Any, definition: Definition, values: "dict[Any, int] | Counter[Any]") -> Metric:
    family = kind(f"{NAMESPACE}_{definition.name}", definition.help, labels=definition.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    found: Metric = family
    return found
