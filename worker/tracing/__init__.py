"""Traces by OpenTelemetry, where OTEL_EXPORTER_OTLP_ENDPOINT is set; else nothing is imported or recorded."""

from worker.tracing.sending import Target, close, enable, is_enabled, is_installed, make_exporter
from worker.tracing.spans import (
    HEADER,
    NO_SPAN,
    Span,
    carried_context,
    fail,
    message_headers,
    request_span,
    sample_requests,
    set_attributes,
    task_span,
)

__all__ = [  # noqa: RUF022 - grouped by topic
    # where spans go
    "Target",
    "enable",
    "is_enabled",
    "is_installed",
    "make_exporter",
    "close",
    # what they are of
    "Span",
    "NO_SPAN",
    "task_span",
    "request_span",
    "sample_requests",
    "set_attributes",
    "fail",
    # the context that messages carry
    "HEADER",
    "carried_context",
    "message_headers",
]
