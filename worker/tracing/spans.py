"""What a trace shows: tasks, and the HTTP requests that are made for them.

The context of a trace is W3C's `traceparent`. A run has one, that of its publisher or of the task that
accepted it, and each of its steps is a child of that. What a trace shows says `docs/how-to/traces.md`.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Final, Self, TypeAlias

from worker.tracing.sending import is_enabled, tracer

HEADER: Final = "traceparent"
"""Of messages and of HTTP requests."""

Attributes: TypeAlias = Mapping[str, str | int | float | bool]

ROUTE_WORDS: Final = frozenset(
    {
        *("agents", "annotate_task_data", "cluster", "data_collections", "data_units", "feasibility"),
        *("gpu_status", "health", "jobs", "logs", "models", "nodes", "plugin_releases", "plugins", "policy"),
        *("projects", "resources", "run", "sdk", "serve_applications", "stop", "tasks"),
    }
)
"""Segments of the platform's paths. Any other is an id or a name, and spans show `{id}` in its place."""


def route_of(path: str) -> str:
    """The template of a path: `tasks/7/annotate_task_data/` is `tasks/{id}/annotate_task_data/`."""
    return "/".join(part if part in ROUTE_WORDS or not part else "{id}" for part in path.split("/"))


_carried: ContextVar[tuple[str, str]] = ContextVar("carried", default=("", ""))
"""The job of the task that runs, and the context that messages of the same job carry on."""
_unsampled: ContextVar[Mapping[str, str] | None] = ContextVar("unsampled", default=None)
"""The headers of requests that have no spans of their own."""


class Span:
    """What is traced until the end of the block; this class itself records nothing."""

    headers: Mapping[str, str] = {}
    """For the HTTP request that it stands for."""
    status = 0
    """Of the answer to that request."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        pass


NO_SPAN: Final = Span()


class _Unsampled(Span):
    """A request that has no span of its own, and says so to the service."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = headers


class _RequestSpan(Span):
    """An HTTP request. It shows no more than method, route and status: the rest may hold secrets."""

    def __init__(self, span: Any) -> None:
        self._span = span
        self.headers = {HEADER: _traceparent(span.get_span_context())}

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if self.status:
            self._span.set_attribute("http.response.status_code", self.status)
        if error_type is not None or self.status >= 400:
            _fail(self._span, error_type.__name__ if error_type else str(self.status), "")
        self._span.end()


class _TaskSpan(Span):
    """A span within which requests have theirs, and whose context the messages of its job carry on."""

    def __init__(self, span: Any, job: str, carried: str) -> None:
        self._span, self._job, self._carried_on = span, job, carried

    def __enter__(self) -> Self:
        from opentelemetry import context, trace

        self._token = context.attach(trace.set_span_in_context(self._span))
        self._carried_token = _carried.set((self._job, self._carried_on))
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        from opentelemetry import context

        _carried.reset(self._carried_token)
        context.detach(self._token)
        self._span.end()


def task_span(
    name: str, traceparent: object, job: str, attributes: Attributes, *, kind: str = "CONSUMER"
) -> Span:
    """What is done for a job, as a child of this context; the beginning of a trace where it is none.

    `kind`: a name of OpenTelemetry's `SpanKind`.
    """
    if not is_enabled() or (begins := tracer()) is None:
        return NO_SPAN
    from opentelemetry import trace

    parent = _context_of(traceparent)
    span = begins.start_span(name, parent, trace.SpanKind[kind], attributes)
    context = trace.get_current_span(parent).get_span_context()
    return _TaskSpan(span, job, _traceparent(context if context.is_valid else span.get_span_context()))


def request_span(service: str, method: str, path: str) -> Span:
    """An HTTP request that is made for a task; `path` is relative to the service's base URL.

    Its `headers` are to be sent, and its `status` is to be set. What is done for no task, such as the poll of
    a log, is not traced.
    """
    if not is_enabled():
        return NO_SPAN
    if (headers := _unsampled.get()) is not None:
        return _Unsampled(headers)
    from opentelemetry import trace

    if not trace.get_current_span().get_span_context().is_valid or (begins := tracer()) is None:
        return NO_SPAN
    route = route_of(path)
    attributes = {"http.request.method": method, "url.template": route, "service.peer.name": service}
    return _RequestSpan(begins.start_span(f"{method} {route}", None, trace.SpanKind.CLIENT, attributes))


def sample_requests(is_sampled: bool) -> None:
    """Whether requests that follow in this context have spans of their own, or only name their trace."""
    if not is_enabled():
        return
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if is_sampled or not context.is_valid:
        _unsampled.set(None)
    else:
        _unsampled.set({HEADER: _traceparent(context, flags=0)})


def carried_context(job: object) -> str:
    """The context that a message of this job carries on when it is published now; empty without one.

    Within the task of one job, messages of others are published, too.
    """
    carried_job, traceparent = _carried.get()
    return traceparent if job is None or str(job) == carried_job else ""


def message_headers(job: object) -> dict[str, str]:
    """The headers with that context, for a message of this job."""
    traceparent = carried_context(job) if is_enabled() else ""
    return {HEADER: traceparent} if traceparent else {}


def set_attributes(attributes: Attributes) -> None:
    """Say more of the task whose span is the present one."""
    if is_enabled():
        from opentelemetry import trace

        trace.get_current_span().set_attributes(attributes)


def fail(error_type: str, text: str) -> None:
    """The task whose span is the present one has failed; `text` has no secrets."""
    if is_enabled():
        from opentelemetry import trace

        _fail(trace.get_current_span(), error_type, text)


def _fail(span: Any, error_type: str, text: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", error_type)
    span.set_status(Status(StatusCode.ERROR, text or None))


def _context_of(traceparent: object) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = {HEADER: traceparent} if isinstance(traceparent, str) else {}
    return TraceContextTextMapPropagator().extract(carrier, Context())


def _traceparent(context: Any, flags: int | None = None) -> str:
    flags = int(context.trace_flags) if flags is None else flags
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags:02x}"
