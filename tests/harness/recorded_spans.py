"""Spans that are kept in memory in place of being sent."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from worker import tracing
from worker.tracing import sending
from worker.tracing.spans import _traceparent

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
"""The context of a publisher, whose span is another program's."""


def _provider() -> Any:
    sending.tracer()
    assert sending._made is not None
    return sending._made.provider


class RecordedSpans:
    """The spans of this process."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def ended(self) -> list[ReadableSpan]:
        """Those that have ended, in this order."""
        _provider().force_flush()
        return list(self._exporter.get_finished_spans())

    def only(self) -> ReadableSpan:
        [span] = self.ended()
        return span


def context_of(span: ReadableSpan) -> str:
    """The span's context, as messages and requests carry it."""
    return _traceparent(span.get_span_context())


def parent_of(span: ReadableSpan) -> str | None:
    """The context of the span's parent; None for the first of a trace."""
    return _traceparent(span.parent) if span.parent else None


@contextmanager
def recorded_spans() -> Iterator[RecordedSpans]:
    """Record until the end of the block, and send nothing."""
    exporter = InMemorySpanExporter()
    make_exporter = sending.make_exporter
    sending.make_exporter = lambda *_: exporter  # type: ignore[assignment]
    tracing.enable(tracing.Target("http://127.0.0.1:1"))
    try:
        yield RecordedSpans(exporter)
    finally:
        tracing.close()
        sending.make_exporter = make_exporter
