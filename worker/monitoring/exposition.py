"""The text of `/metrics`: what the workers of this host have recorded, and what Redis says of all workers."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from redis import Redis

from worker.monitoring.host import is_running, make_private
from worker.monitoring.redis_metrics import Queues, RedisMetrics
from worker.monitoring.worker_states import read_states, states_folder


def metrics_folder(name: str, pid: int) -> Path:
    """Where the worker of this node name and process records."""
    return states_folder() / "metrics" / f"{name.replace('/', '_')}.{pid}"


def remove_metrics_of_ended() -> None:
    """Remove what ended workers have recorded; the counters of a worker begin at 0 when it starts anew."""
    with suppress(OSError):
        make_private(states_folder() / "metrics")
        for folder in (states_folder() / "metrics").iterdir():
            pid = folder.suffix.removeprefix(".")
            if pid.isascii() and pid.isdigit() and not is_running(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)


class RecordedMetrics:
    """What the workers of this host have recorded, each with its name in the label `worker`."""

    def collect(self) -> Iterator[Metric]:
        """The metrics of all workers; none of a worker that has just ended."""
        merged: dict[str, Metric] = {}
        for state in read_states(states_folder()):
            folder = metrics_folder(state.name, state.pid)
            with suppress(FileNotFoundError, ValueError):
                collector: Any = MultiProcessCollector(None, str(folder))  # type: ignore[no-untyped-call]
                for metric in collector.collect():
                    of_all = merged.setdefault(
                        metric.name, Metric(metric.name, metric.documentation, metric.type)
                    )
                    of_all.samples += [
                        sample._replace(labels={**sample.labels, "worker": state.name})
                        for sample in metric.samples
                    ]
        yield from merged.values()


class Exposition:
    """Makes the text of `/metrics`."""

    def __init__(self, redis: "Redis", queues: Queues | None) -> None:
        """As for `RedisMetrics`."""
        self._registry = CollectorRegistry()
        self._registry.register(RecordedMetrics())
        self._registry.register(RedisMetrics(redis, queues))

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self._registry)
