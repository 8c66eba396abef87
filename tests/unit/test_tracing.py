"""Traces: what a span of a request shows, what goes with the request, and what the receiver cannot do."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from opentelemetry.trace import SpanKind, StatusCode
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.harness.recorded_spans import PARENT, RecordedSpans, context_of, parent_of
from worker import tracing
from worker.cli.checks.traces_check import check_receiver
from worker.platform import AgentClient, BackendClient, ClientError, RetryPolicy
from worker.tracing import sending
from worker.tracing import spans as spans_module

TOKEN = "a-very-secret-token"
CLOSED = "http://127.0.0.1:9"
"""Nobody listens there."""


def task() -> tracing.Span:
    return tracing.task_span("process step", PARENT, "42", {})


class Service:
    """Answers every request, and keeps them."""

    def __init__(self, status: int = 200) -> None:
        self.requests: list[httpx.Request] = []
        self._status = status

    def answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return httpx.Response(self._status, json={"id": 1, "allowed": True, "results": [], "next": None})

    def backend(self) -> BackendClient:
        transport = httpx.MockTransport(self.answer)
        return BackendClient("http://backend", TOKEN, transport=transport, retries=RetryPolicy(attempts=1))

    def agent(self) -> AgentClient:
        return AgentClient("http://agent", TOKEN, transport=httpx.MockTransport(self.answer))


def test_nothing_is_imported_without_an_endpoint() -> None:
    program = (
        "import sys\n"
        "from worker import tracing\n"
        "from worker.platform import BackendClient\n"
        "import worker.workflow.task\n"
        "tracing.task_span('x', None, '1', {}).__enter__()\n"
        "tracing.request_span('backend', 'GET', 'tasks/1/')\n"
        "tracing.sample_requests(True)\n"
        # What redis-py imports for its own metrics, where it finds it, is not of traces.
        "wanted = 'opentelemetry.sdk.trace', 'opentelemetry.exporter', 'google.protobuf', 'requests'\n"
        "print([name for name in sys.modules if name.startswith(wanted)])\n"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environ, check=True
    )

    assert done.stdout == "[]\n"


def test_request_shows_method_route_and_status_alone(spans: RecordedSpans) -> None:
    # Given a task that asks a service with a token, a filter and a body
    with task():
        Service().backend().list_tasks({"secret_filter": "x"}, 7)

    # Then its span has nothing of that
    request, of_task = spans.ended()
    assert (request.name, request.kind) == ("GET sdk/tasks/", SpanKind.CLIENT)
    assert dict(request.attributes or {}) == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "service.peer.name": "backend",
        "url.template": "sdk/tasks/",
    }
    assert parent_of(request) == context_of(of_task)


@pytest.mark.parametrize(
    ("call", "route"),
    [
        (lambda to: to.backend().get_project(7), "projects/{id}/"),
        (lambda to: to.backend().get_data_collection(7), "data_collections/{id}/"),
        (lambda to: to.backend().get_task(7), "tasks/{id}/"),
        (lambda to: to.backend().get_data_unit(7), "data_units/{id}/"),
        (lambda to: to.backend().annotate_task_data(7, {}), "tasks/{id}/annotate_task_data/"),
        (lambda to: to.backend().get_plugin_release("run"), "plugin_releases/run/"),
        (lambda to: to.backend().get_plugin_release("digits@1.0.0"), "plugin_releases/{id}/"),
        (lambda to: to.backend().run_plugin("digits", {"action": "inference"}), "plugins/{id}/run/"),
        (lambda to: to.backend().get_model(7), "models/{id}/"),
        (lambda to: to.backend().list_serve_applications(), "serve_applications/"),
        (lambda to: to.backend().list_agents(), "agents/"),
        (lambda to: to.backend().update_job("a-b", status="RUNNING"), "jobs/{id}/"),
        (lambda to: to.backend().create_logs([]), "logs/"),
        (lambda to: to.agent().health(), "health/"),
        (lambda to: to.agent().check_feasibility("serve"), "resources/feasibility/"),
        (lambda to: to.agent().get_cluster_resources(), "resources/cluster/"),
        (lambda to: to.agent().get_policy(), "resources/policy/"),
        (lambda to: to.agent().gpu_status(), "gpu_status/"),
        (lambda to: to.agent().get_job("raysubmit_1"), "jobs/{id}/"),
        (lambda to: to.agent().get_node("a1b2"), "nodes/{id}/"),
        (lambda to: to.agent().get_task("a1b2"), "tasks/{id}/"),
        (lambda to: to.agent().get_serve_application("digits"), "serve_applications/{id}/"),
    ],
)
def test_ids_and_names_are_left_out_of_routes(
    spans: RecordedSpans, call: Callable[[Service], object], route: str
) -> None:
    with task():
        call(Service())

    assert (spans.ended()[0].attributes or {})["url.template"] == route


def test_request_carries_the_context_of_its_span(spans: RecordedSpans) -> None:
    service = Service()
    with task():
        service.backend().run_plugin("digits", {"action": "inference", "params": {}})

    assert [request.headers["traceparent"] for request in service.requests] == [context_of(spans.ended()[0])]


def test_request_for_no_task_is_not_traced(spans: RecordedSpans) -> None:
    service = Service()
    service.backend().get_task(1)

    assert (spans.ended(), "traceparent" in service.requests[0].headers) == ([], False)


def test_request_of_a_task_that_stands_for_none_has_no_span(spans: RecordedSpans) -> None:
    # Given a chunk's task that is not the one that stands for all
    service = Service()
    with task():
        tracing.sample_requests(False)
        service.backend().get_task(1)
        tracing.sample_requests(True)

    # Then the service hears whose the request is, and that the caller has recorded nothing
    of_task = spans.only()
    assert service.requests[0].headers["traceparent"] == context_of(of_task)[:-2] + "00"


@pytest.mark.parametrize(("status", "error_type"), [(503, "503"), (404, "404")])
def test_error_of_a_service_is_that_of_the_span(spans: RecordedSpans, status: int, error_type: str) -> None:
    with task(), pytest.raises(ClientError):
        Service(status).backend().get_task(1)

    request = spans.ended()[0]
    assert request.status.status_code is StatusCode.ERROR
    assert (request.attributes or {})["error.type"] == error_type


def test_request_without_an_answer_names_the_error(spans: RecordedSpans) -> None:
    with task(), pytest.raises(ClientError):
        BackendClient(CLOSED, TOKEN, retries=RetryPolicy(attempts=1)).get_task(1)

    attributes = spans.ended()[0].attributes or {}
    assert attributes["error.type"] == "ClientConnectionError"
    assert "http.response.status_code" not in attributes


@pytest.fixture
def to_nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Spans go to where nobody listens, each at once."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    tracing.enable(tracing.Target(CLOSED))
    yield
    tracing.close()


def test_receiver_that_is_down_is_warned_of_once(to_nobody: None, eventually: Callable[..., None]) -> None:
    with capture_logs() as logs:
        # When spans are sent to it several times
        for _ in range(3):
            with task():
                pass
            assert sending._made is not None
            exporter = sending._made.exporter
            eventually(lambda: exporter.is_down)  # noqa: B023
            sending._made.provider.force_flush()

    assert [entry["event"] for entry in logs] == ["traces not sent"]
    assert CLOSED not in str(logs)


def test_a_span_that_begins_amid_the_end_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given traces that end between the question whether there are any and the beginning of a span
    monkeypatch.setattr(spans_module, "is_enabled", lambda: True)
    monkeypatch.setattr(sending, "_target", None)
    monkeypatch.setattr(sending, "_made", None)

    # When a step begins, and sends a request
    with task() as span:
        request = tracing.request_span("backend", "GET", "tasks/1/")

    # Then neither has a span, and the step goes on
    assert span is request


def test_process_ends_soon_without_a_receiver(to_nobody: None) -> None:
    with task():
        pass

    began = time.monotonic()
    tracing.close()

    assert time.monotonic() - began < sending.FLUSH_SECONDS + 1
    assert not tracing.is_enabled()


class Receiver(HTTPServer):
    """Answers with `status`, and keeps the headers of what it was sent."""

    def __init__(self, status: int) -> None:
        received = self.received = list[dict[str, str]]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append({name.lower(): value for name, value in self.headers.items()})
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> "Receiver":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


@pytest.mark.parametrize(
    ("status", "problem"), [(200, None), (401, "it answers 401"), (503, "it answers 503")]
)
def test_receiver_is_checked_with_its_headers(status: int, problem: str | None) -> None:
    with Receiver(status) as receiver:
        found = check_receiver(tracing.Target(receiver.url, SecretStr(f"api-key={TOKEN}")), 5)

    assert (found, [headers["api-key"] for headers in receiver.received]) == (problem, [TOKEN])


def test_receiver_that_does_not_answer_is_named_at_once() -> None:
    began = time.monotonic()

    problem = check_receiver(tracing.Target(CLOSED), 3)

    assert "does not answer" in (problem or "")
    assert time.monotonic() - began < 3
