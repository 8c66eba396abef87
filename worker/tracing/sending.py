"""The library that records and sends spans, which is imported where OTEL_EXPORTER_OTLP_ENDPOINT is set."""

import logging
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog
from pydantic import SecretStr

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

log = structlog.get_logger(__name__)

SERVICE_NAME: Final = "synapse-worker"
"""Unless OTEL_SERVICE_NAME says another."""
FLUSH_SECONDS: Final = 3.0
"""How long a process that ends sends its last spans; a third of it where the last ones were not taken."""


@dataclass(frozen=True)
class Target:
    """Where spans are sent, and the headers that go with them, as OTEL_EXPORTER_OTLP_HEADERS has them."""

    endpoint: str
    headers: SecretStr | None = None


_target: Target | None = None


def enable(target: Target) -> None:
    """Record from now on, in this process and those forked from it."""
    global _target
    if not is_installed():
        log.warning("traces are off", reason="synapse-worker[traces] is not installed")
        return
    # What it has to say of an endpoint that does not answer, this module says once.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    if _target is None:
        os.register_at_fork(after_in_child=_forget)
    _target = target


def is_installed() -> bool:
    """Whether the library and its exporter are there, which this imports."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError:
        return False
    return True


def is_enabled() -> bool:
    """Whether spans are recorded."""
    return _target is not None


class _Exporter:
    """Sends spans from the library's own thread. That the endpoint does not take them is said once."""

    def __init__(self, otlp: "SpanExporter") -> None:
        self._otlp = otlp
        self.is_down = False

    def export(self, spans: Any) -> Any:
        """See the library's `SpanExporter`."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        result = self._otlp.export(spans)
        is_down = result is not SpanExportResult.SUCCESS
        if is_down and not self.is_down:
            log.warning("traces not sent", reason="OTEL_EXPORTER_OTLP_ENDPOINT takes none")
        elif self.is_down and not is_down:
            log.info("traces sent again")
        self.is_down = is_down
        return result

    def shutdown(self) -> None:
        """End a repetition that waits."""
        self._otlp.shutdown()


class _Tracing:
    """The library's objects, of one process."""

    def __init__(self, target: Target) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME as NAME
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self.exporter = _Exporter(make_exporter(target))
        environment = Resource.create()
        is_named = not str(environment.attributes.get(NAME, "")).startswith("unknown_service")
        resource = environment if is_named else environment.merge(Resource({NAME: SERVICE_NAME}))
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        # Its queue is bounded, and the oldest that do not fit are dropped: a step never waits for it.
        self.provider.add_span_processor(BatchSpanProcessor(self.exporter))  # type: ignore[arg-type]
        self.tracer = self.provider.get_tracer(SERVICE_NAME)


_made: _Tracing | None = None
_lock = threading.Lock()


def tracer() -> Any:
    """What begins spans; None where there are no traces, or none any more because the process ends."""
    global _made
    made = _made
    if made is None:
        with _lock:
            made = _made
            target = _target
            if made is None and target is not None:
                made = _made = _Tracing(target)
    return made and made.tracer


def _forget() -> None:
    """A forked process has connections of its own, and the thread that sends is not in it."""
    global _made, _lock
    _made, _lock = None, threading.Lock()


def make_exporter(target: Target, session: Any = None) -> "SpanExporter":
    """What sends spans by OTLP over HTTP. The library itself reads its other variables."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.util.re import parse_env_headers

    text = target.headers.get_secret_value() if target.headers else ""
    headers = parse_env_headers(text, liberal=True) if text else None
    return OTLPSpanExporter(endpoint=f"{target.endpoint}/v1/traces", headers=headers, session=session)


def close() -> None:
    """Send what is left, for a few seconds, and record nothing from now on."""
    global _made, _target
    made, _made, _target = _made, None, None
    if made is None:
        return
    # The library would wait for half a minute.
    flushing = threading.Thread(target=made.provider.shutdown, name="traces-flush", daemon=True)
    flushing.start()
    flushing.join(FLUSH_SECONDS / 3 if made.exporter.is_down else FLUSH_SECONDS)
    if flushing.is_alive():
        made.exporter.shutdown()
