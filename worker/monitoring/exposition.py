"""The text of `/metrics`: what the workers of this host have recorded, and what Redis says of all workers."""

import fcntl
import os
import shutil
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from redis import Redis

from worker import metrics
from worker.host import is_running, make_private
from worker.monitoring.redis_metrics import Queues, RedisMetrics
from worker.monitoring.worker_states import read_states, states_folder, states_root

log = structlog.get_logger(__name__)

ENDED: Final = "ended"
"""Stands in the name of a file in place of a process number."""


def metrics_folder(name: str, pid: int) -> Path:
    """Where the worker of this node name and process records."""
    return states_folder() / "metrics" / f"{name.replace('/', '_')}.{pid}"


def remove_metrics_of_ended() -> None:
    """Remove what ended workers have recorded; the counters of a worker begin at 0 when it starts anew."""
    with suppress(OSError):
        make_private(states_folder() / "metrics", states_root())
        for folder in (states_folder() / "metrics").iterdir():
            pid = folder.suffix.removeprefix(".")
            if pid.isascii() and pid.isdigit() and not is_running(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)


def fold_ended_processes(folder: Path) -> None:
    """Add what ended processes of a worker's pool have recorded into one file of all of them.

    A counter must not fall when a process ends, so its file cannot just be removed; and a pool may have had
    any number of processes. Raises `OSError`; then the files stay as they are.
    """
    with _locked(folder):
        _fold(folder)


_locking = threading.Lock()


def _forget_lock() -> None:
    """The thread that held it is not in a forked process."""
    global _locking
    _locking = threading.Lock()


os.register_at_fork(after_in_child=_forget_lock)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Nobody else reads or folds the files of this folder meanwhile.

    By a record lock, which its process alone has: one of `flock` would be that of a process, too, which is
    forked meanwhile.
    """
    with _locking, (folder / "lock").open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield


def _fold(folder: Path) -> None:
    for kind in ("counter", "histogram"):
        ended = [file for file in folder.glob(f"{kind}_*.db") if _has_ended(file)]
        if not ended:
            continue
        sums, folded = Counter[str](), folder / f"{kind}_{ENDED}.db"
        for file in [*ended, folded]:
            with suppress(FileNotFoundError):
                sums.update(_recorded(file))
        written = folder / f"{kind}_{ENDED}.new"
        written.unlink(missing_ok=True)
        values = metrics.reserving(MmapedDict)(str(written))
        for key, value in sums.items():
            values.write_value(key, value, 0.0)
        values.close()
        # A worker that dies in between counts twice, which nobody sees: its metrics end with it.
        written.rename(folded)
        for file in ended:
            file.unlink()


def _has_ended(file: Path) -> bool:
    pid = file.stem.partition("_")[2]
    return pid.isascii() and pid.isdigit() and not is_running(int(pid))


def _recorded(file: Path) -> dict[str, float]:
    try:
        found: Any = MmapedDict.read_all_values_from_file(str(file))  # type: ignore[no-untyped-call]
        return {key: value for key, value, _, _ in found}
    except (RuntimeError, ValueError, struct.error) as error:
        log.warning("metrics of an ended process not readable", error_type=type(error).__name__)
        return {}


class RecordedMetrics:
    """What the workers of this host have recorded, each with its name in the label `worker`."""

    def collect(self) -> Iterator[Metric]:
        """The metrics of all workers; none of a worker that has just ended."""
        merged: dict[str, Metric] = {}
        for state in read_states(states_folder()):
            folder = metrics_folder(state.name, state.pid)
            with suppress(FileNotFoundError, ValueError), _locked(folder):
                with suppress(OSError):
                    _fold(folder)
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
