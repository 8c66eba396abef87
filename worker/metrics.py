"""What a worker counts and measures for Prometheus. Nothing is recorded before `start_recording`.

What the console does is declared here as well; it has the numbers itself (`worker.console.metrics_page`).
Every process of the worker, also those of a prefork pool, writes into memory-mapped files of the worker's
folder, which `worker.monitoring.exposition` reads. The page `docs/monitoring.md` says what each metric means.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

log = structlog.get_logger(__name__)

NAMESPACE: Final = "synapse_worker"
STEP_BUCKETS: Final = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300)
REQUEST_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
RELAY_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)
SEND_BUCKETS: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 15)
"""Upper limits, in seconds."""


@dataclass(frozen=True)
class Definition:
    """A metric: a histogram where it has buckets, else a counter or a gauge, by its name."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def kind(self) -> str:
        """As Prometheus calls it."""
        return "histogram" if self.buckets else "counter" if self.name.endswith("_total") else "gauge"


ACCEPTED: Final = Definition("runs_accepted_total", "Runs accepted, by action.", ("action",))
ENDED: Final = Definition("runs_ended_total", "Runs ended, by action and status.", ("action", "status"))
STEPS: Final = Definition(
    "step_seconds", "Seconds of a step, by what followed.", ("step", "outcome"), STEP_BUCKETS
)
FAILURES: Final = Definition(
    "step_failures_total", "Errors in steps, by class and retry.", ("step", "error_type", "retries")
)
POLLS: Final = Definition("polls_total", "Polls, by what is waited for.", ("of",))
ANNOTATIONS: Final = Definition("annotations_total", "Tasks annotated or failed.", ("result",))
WEBHOOKS: Final = Definition("webhooks_total", "Attempts to send an end to the webhook.", ("result",))
REJECTED: Final = Definition("dead_letters_total", "Messages kept as dead letters, by task.", ("task",))
REQUESTS: Final = Definition(
    "request_seconds",
    "Seconds of an HTTP request, by service and status; 0 where there was no answer.",
    ("service", "method", "status"),
    REQUEST_BUCKETS,
)
RELAY: Final = Definition(
    "log_relay_seconds", "Seconds from a line's arrival to Redis.", buckets=RELAY_BUCKETS
)
WORKER_DEFINITIONS: Final = (
    ACCEPTED,
    ENDED,
    STEPS,
    FAILURES,
    POLLS,
    ANNOTATIONS,
    WEBHOOKS,
    REJECTED,
    REQUESTS,
    RELAY,
)

CONSOLE_RUNS: Final = Definition(
    "console_runs", "Runs that have not ended, as the console knows them.", ("action", "status")
)
CONSOLE_CONNECTED: Final = Definition("console_connected", "1 while the console hears of changes.")
CONSOLE_STREAMS: Final = Definition(
    "console_streams", "Streams to browsers that are open, of changes and of logs.", ("of",)
)
CONSOLE_CHANGES: Final = Definition(
    "console_changes_total", "What the console has heard, of runs and of dead letters.", ("of",)
)
CONSOLE_SENDING: Final = Definition(
    "console_send_seconds",
    "Seconds from a change in Redis to its being sent to a browser, of the oldest in each update.",
    buckets=SEND_BUCKETS,
)
DEFINITIONS: Final = (
    *WORKER_DEFINITIONS,
    CONSOLE_RUNS,
    CONSOLE_CONNECTED,
    CONSOLE_STREAMS,
    CONSOLE_CHANGES,
    CONSOLE_SENDING,
)


class _Metrics:
    """The metrics of this process. `prometheus_client` is imported only where something is recorded."""

    def __init__(self, folder: Path) -> None:
        from prometheus_client import values

        # The library reads the variable when it is imported, which others may have done before.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        vars(values)["MmapedDict"] = reserving(vars(values)["MmapedDict"])
        values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]
        self._made = {definition: self._make(definition) for definition in WORKER_DEFINITIONS}

    @staticmethod
    def _make(definition: Definition) -> Any:
        from prometheus_client import Counter, Histogram

        given: Any = {
            "labelnames": definition.labels,
            "namespace": NAMESPACE,
            "registry": None,
        }
        if definition.buckets:
            return Histogram(definition.name, definition.help, buckets=definition.buckets, **given)
        return Counter(definition.name, definition.help, **given)

    def count(self, definition: Definition, *labels: str, by: int = 1) -> None:
        self._of(definition, labels).inc(by)

    def observe(self, definition: Definition, *labels: str, seconds: float) -> None:
        self._of(definition, labels).observe(seconds)

    def _of(self, definition: Definition, labels: tuple[str, ...]) -> Any:
        metric = self._made[definition]
        return metric.labels(*labels) if labels else metric


OUTCOMES: Final = {
    "Continue": "continued",
    "ContinueInParts": "continued",
    "Reschedule": "rescheduled",
    "Retry": "retried",
    "Finish": "ended",
    "Suspend": "suspended",
}
"""What follows a step, by the name of its outcome's class."""

KNOWN_TASKS: Final = ("deploy", "to_task", "stop", "tail_logs")
"""Tasks of the contract; a dead letter of any other task counts as `other`, as anybody may name one."""

MAX_KEY_BYTES: Final = 8 * 1024
"""More than the name, help and labels of a series take."""


def reserving(mapped_dict: Any) -> Any:
    """The library's class of files, but with their space reserved before it is mapped.

    A write to a mapped page for which the disk has no space ends the process with SIGBUS; to reserve it is
    an `OSError`.
    """

    class ReservingDict(mapped_dict):
        def __init__(self, filename: str, read_mode: bool = False) -> None:
            if not read_mode:
                with Path(filename).open("a+b") as file:
                    size = os.fstat(file.fileno()).st_size
                    os.posix_fallocate(file.fileno(), 0, size or INITIAL_BYTES)
            super().__init__(filename, read_mode)

        def _init_value(self, key: str) -> None:
            if self._capacity - self._used < MAX_KEY_BYTES:
                os.posix_fallocate(self._f.fileno(), 0, 2 * self._capacity)
            super()._init_value(key)

    return mapped_dict if mapped_dict.__name__ == ReservingDict.__name__ else ReservingDict


INITIAL_BYTES: Final = 64 * 1024
"""As the library has it."""

_metrics: _Metrics | None = None


def start_recording(folder: Path) -> None:
    """Record from now on, in this process and those forked from it, into files of this folder."""
    global _metrics
    _metrics = _Metrics(folder)


def _record(record: Callable[[_Metrics], object]) -> None:
    """Record, unless nothing is recorded. Where its files cannot be written, nothing is recorded any more."""
    global _metrics
    if _metrics is None:
        return
    try:
        record(_metrics)
    except OSError as error:
        _metrics = None
        log.error("nothing is recorded for /metrics any more", error=error.strerror)


def count_accepted(action: str) -> None:
    """A run was created."""
    _record(lambda to: to.count(ACCEPTED, action))


def count_ended(action: str, status: str) -> None:
    """This process has ended a run."""
    _record(lambda to: to.count(ENDED, action, status))


def count_poll(of: str) -> None:
    """Something was polled: a pre-processor, a deployment, a Ray job."""
    _record(lambda to: to.count(POLLS, of))


def count_failure(step: str, error_type: str, retries: str) -> None:
    """A step has raised an error, which is retried as `retries` says."""
    _record(lambda to: to.count(FAILURES, step, error_type, retries))


def count_annotations(success: int, failed: int) -> None:
    """So many tasks were recorded as annotated, and as failed."""
    if success:
        _record(lambda to: to.count(ANNOTATIONS, "success", by=success))
    if failed:
        _record(lambda to: to.count(ANNOTATIONS, "failed", by=failed))


def count_rejected(task: str) -> None:
    """A message was kept as a dead letter."""
    _record(lambda to: to.count(REJECTED, task if task in KNOWN_TASKS else "other"))


def count_webhook(result: str) -> None:
    """The end of a run was `delivered` to the webhook, will be `retried`, was `given_up` or is `damaged`."""
    _record(lambda to: to.count(WEBHOOKS, result))


def observe_request(service: str, method: str, status: int, began: float) -> None:
    """An HTTP request that began at `began` (monotonic seconds) has ended; status 0 where nothing came."""
    seconds = time.monotonic() - began
    _record(lambda to: to.observe(REQUESTS, service, method, str(status), seconds=seconds))


def observe_relay(oldest_at: float) -> None:
    """Redis has lines of a log, the oldest of which was read at `oldest_at` (monotonic seconds)."""
    _record(lambda to: to.observe(RELAY, seconds=time.monotonic() - oldest_at))


class StepTimer:
    """Measures a delivery of a step from its beginning to what followed from it."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._began = time.monotonic()

    def observe(self, outcome: object) -> None:
        """It has ended; the class of `outcome` names what follows."""
        name = OUTCOMES.get(type(outcome).__name__, "other")
        seconds = time.monotonic() - self._began
        _record(lambda to: to.observe(STEPS, self._step, name, seconds=seconds))
