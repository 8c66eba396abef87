"""Where a worker sends traces, and that nothing wrong in OpenTelemetry's variables stops it."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from worker import tracing
from worker.monitoring import traces
from worker.settings import load_settings


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SYNAPSE_HOST", "http://backend")
    monkeypatch.setenv("SYNAPSE_ACCESS_TOKEN", "token-of-the-worker")
    monkeypatch.setenv("PLUGINS_DIR", str(tmp_path))
    monkeypatch.setattr(traces, "settings", load_settings)


@pytest.fixture
def enabled(monkeypatch: pytest.MonkeyPatch) -> list[tracing.Target]:
    """Where the worker sends traces."""
    found: list[tracing.Target] = []
    monkeypatch.setattr(tracing, "enable", found.append)
    return found


def test_a_worker_sends_traces_to_its_receiver(
    monkeypatch: pytest.MonkeyPatch, enabled: list[tracing.Target]
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")

    traces._start()

    assert enabled == [tracing.Target("http://collector:4318", None)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"), ("OTEL_EXPORTER_OTLP_HEADERS", "two\nlines")],
)
def test_what_is_wrong_is_one_line_at_start(
    monkeypatch: pytest.MonkeyPatch, enabled: list[tracing.Target], name: str, value: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
    monkeypatch.setenv(name, value)

    with capture_logs() as lines:
        traces._start()

    assert enabled == []
    assert [line["event"] for line in lines] == ["traces are off"]
    assert lines[0]["reason"].startswith(f"{name} ")
