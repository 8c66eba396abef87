"""Traces of a worker: recorded from its start, and sent to the last span when one of its processes ends."""

from typing import Any

import structlog
from celery import signals

from worker import tracing
from worker.settings import Settings, settings, trace_mistakes

log = structlog.get_logger(__name__)


def target_of(settings: Settings) -> tracing.Target | None:
    """Where these settings send traces; None for nowhere, as where one of them is wrong."""
    if trace_mistakes():
        return None
    endpoint, headers = settings.otel_exporter_otlp_endpoint, settings.otel_exporter_otlp_headers
    return None if endpoint is None else tracing.Target(endpoint, headers)


@signals.celeryd_init.connect(weak=False)
def _start(**_: Any) -> None:
    """The worker starts; the processes of its pool are forked later."""
    for mistake in trace_mistakes():
        log.warning("traces are off", reason=mistake)
    if (target := target_of(settings())) is not None:
        tracing.enable(target)
        log.info("traces are sent", to="OTEL_EXPORTER_OTLP_ENDPOINT")


@signals.worker_process_shutdown.connect(weak=False)
@signals.worker_shutdown.connect(weak=False)
def _end(**_: Any) -> None:
    """A process of the pool ends, or the worker does, whose tasks have ended by then."""
    tracing.close()
