"""What `doctor` reports beyond the clients' own errors."""

import contextlib
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from shared.webhooks import verify_event
from tests.harness.proxy_trap import PROXY_VARIABLES
from tests.unit.shared.test_webhooks import SECRET
from worker import tracing
from worker.cli.checks import doctor as doctor_module
from worker.cli.checks.doctor import consumed_queues, named_queues
from worker.cli.main import app
from worker.platform import AuthenticationError, AuthorizationError, NotFoundError
from worker.plugins import PluginHostUnavailableError
from worker.runs.reports.webhook_client import WebhookClient

EVERYTHING = ["deploy", "to_task", "annotate", "logs", "control"]


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A worker's settings; of its dependencies only the queue is available."""
    monkeypatch.setattr("worker.cli.checks.doctor._check_queue", lambda *_: "connected")
    return {
        "SYNAPSE_HOST": "http://127.0.0.1:9",
        "SYNAPSE_ACCESS_TOKEN": "token-of-the-worker",
        "PLUGINS_DIR": str(tmp_path),
        "REDIS_URL": "redis://127.0.0.1:9/0",
        "RAY_ADDRESS": "",
        "COLUMNS": "200",
    }


def doctor(environ: dict[str, str]) -> list[str]:
    done = CliRunner().invoke(app, ["doctor"], env=environ)
    assert done.exit_code == 1, done.output
    return done.stdout.splitlines()


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXY_VARIABLES, "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def given_workers(monkeypatch: pytest.MonkeyPatch, *queues: list[str]) -> None:
    answers: Any = {f"worker{n}": [{"name": name} for name in names] for n, names in enumerate(queues)}
    monkeypatch.setattr("worker.cli.checks.doctor.active_queues", lambda: answers)


@pytest.mark.parametrize(
    ("queues", "line"),
    [
        ([], "! workers: 0 answer; nobody listens on deploy, to_task, annotate, logs, control"),
        ([["deploy", "control"], ["to_task"]], "! workers: 2 answer; nobody listens on annotate, logs"),
        ([EVERYTHING], "✓ workers: 1 answers; each queue has a listener"),
    ],
)
def test_queues_without_a_consumer_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], queues: list[list[str]], line: str
) -> None:
    given_workers(monkeypatch, *queues)

    assert line in doctor(environ)


@pytest.mark.parametrize("answer", [{"error": "no such command"}, None, ["deploy"], [{"routing_key": "x"}]])
def test_an_odd_answer_of_a_worker_hides_no_other(answer: object) -> None:
    answers = {"odd@a": named_queues(answer), "good@b": named_queues([{"name": "deploy"}])}

    assert consumed_queues(answers) == {"deploy"}


def test_workers_that_cannot_be_asked_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    def rejects() -> None:
        raise RuntimeError("no reply queue")

    monkeypatch.setattr("worker.cli.checks.doctor.active_queues", rejects)

    assert "! workers: could not be asked (RuntimeError)" in doctor(environ)


def test_unavailable_ray_is_shown_with_its_settings(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    # Given a cluster that does not answer
    def rejects(_address: str) -> None:
        raise PluginHostUnavailableError("no answer within 10 s")

    given_workers(monkeypatch, EVERYTHING)
    monkeypatch.setattr("worker.cli.cluster.check_cluster", rejects)

    # When it is checked, then the doctor announces the check, and shows the error with its settings
    output = doctor({**environ, "RAY_ADDRESS": "127.0.0.1:9"})
    at = output.index("· checking ray …")
    assert output[at + 1] == "✗ ray: no answer within 10 s (see RAY_ADDRESS, RAY_AUTH_MODE, RAY_AUTH_TOKEN)"


def test_unknown_variable_is_a_warning(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    given_workers(monkeypatch, EVERYTHING)

    output = doctor({**environ, "WORKER_TYPO": "1", "WORKER_PLUGINS_HOST": "ray"})

    assert "! settings: WORKER_TYPO is not a setting" in output
    assert "! settings: WORKER_PLUGINS_HOST is not a setting; is WORKER_PLUGIN_HOST meant?" in output


def test_bad_urls_are_shown_with_their_settings(tmp_path: Path) -> None:
    environ = {
        "SYNAPSE_HOST": "http://127.0.0.1:9",
        "SYNAPSE_ACCESS_TOKEN": "token",
        "PLUGINS_DIR": str(tmp_path),
        "REDIS_URL": "redis://redis..svc/0",
        "CELERY_BROKER_URL": "amqp://rabbit..svc//",
        "SYNAPSE_AGENT_URL": "",
        "RAY_ADDRESS": "",
    }

    done = CliRunner().invoke(app, ["doctor"], env=environ)

    assert done.exit_code == 1, done.exception
    output = " ".join(done.stdout.split())
    assert "✗ redis: no usable address (see REDIS_URL)" in output
    assert "✗ queue: no usable address (see CELERY_BROKER_URL)" in output
    assert "✗ backend: 503 Service Unavailable" in output


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (204, "✓ webhook: takes a signed event (of the type test)"),
        (401, "✗ webhook: 401 Unauthorized (see WORKER_WEBHOOK_URL, WORKER_WEBHOOK_SECRET)"),
    ],
)
def test_the_webhook_is_sent_a_signed_event(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], status: int, line: str
) -> None:
    # Given a receiver that takes the event, or does not
    received: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        received.append(request)
        return httpx.Response(status, content=iter([b""]))

    client = partial(WebhookClient, transport=httpx.MockTransport(answer))
    monkeypatch.setattr("worker.cli.checks.doctor.WebhookClient", client)
    given_workers(monkeypatch, EVERYTHING)
    settings = {"WORKER_WEBHOOK_URL": "https://receiver.example/hook", "WORKER_WEBHOOK_SECRET": SECRET}

    # When the worker's environment is checked
    output = doctor({**environ, **settings})

    # Then the answer is shown, and the event can be verified
    assert line in output
    assert verify_event(received[0].content, received[0].headers, SECRET)["type"] == "test"


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (None, "✓ traces: the receiver takes spans"),
        ("it answers 401", "! traces: no traces are sent: it answers 401 (see OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
def test_the_receiver_of_traces_is_asked(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], problem: str | None, line: str
) -> None:
    # Given a receiver of traces that takes them, or does not
    asked: list[tracing.Target] = []
    monkeypatch.setattr(doctor_module, "check_receiver", lambda target, _: (asked.append(target), problem)[1])
    given_workers(monkeypatch, EVERYTHING)
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://otel.example/",
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=abc-def",
    }

    # When the worker's environment is checked
    output = doctor({**environ, **settings})

    # Then it is named, and its key is not shown
    assert any(each.startswith(line) for each in output), output
    assert asked == [tracing.Target("https://otel.example", SecretStr("api-key=abc-def"))]
    assert "abc-def" not in "".join(output)


def test_receiver_of_traces_needs_the_extra(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    monkeypatch.setattr(tracing, "is_installed", lambda: False)
    given_workers(monkeypatch, EVERYTHING)

    output = doctor({**environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"})

    assert any("synapse-worker[traces] is not installed" in line for line in output), output


def test_a_wrong_address_for_traces_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    given_workers(monkeypatch, EVERYTHING)

    output = doctor({**environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"})

    start = "! traces: no traces are sent: OTEL_EXPORTER_OTLP_ENDPOINT must start with http:// or https://"
    assert any(line.startswith(start) for line in output), output


ANY_QUEUE = "publish with queue=, which is one of deploy, to_task, annotate, logs, control"


@pytest.mark.parametrize(
    ("queue", "count", "lies", "advice"),
    [
        ("celery", 3, "3 messages lie", ANY_QUEUE),
        ("deploy.7", 1, "1 message lies", "start a worker with WORKER_AGENT=7 and -Q deploy.7"),
        ("logs", 2, "2 messages lie", "start a worker with -Q logs"),
        ("to_tasks", 2, "2 messages lie", ANY_QUEUE),
    ],
)
def test_messages_that_nobody_reads_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], queue: str, count: int, lies: str, advice: str
) -> None:
    given_workers(monkeypatch, ["deploy", "to_task", "annotate", "control"])
    monkeypatch.setattr(
        "worker.cli.checks.doctor._waiting_messages", lambda _url: {queue: count, "deploy": 100}
    )

    output = doctor({**environ, "COLUMNS": "300"})

    assert f"! queue: {lies} in {queue}, on which nobody listens: {advice}" in output
    assert not [line for line in output if "lie in deploy," in line]


def test_findings_are_json_on_demand(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> None:
    given_workers(monkeypatch, EVERYTHING)

    done = CliRunner().invoke(app, ["doctor", "--json"], env={**environ, "WORKER_TYPO": "[/b]"})

    found = json.loads(done.stdout)
    assert (done.exit_code, found["healthy"]) == (1, False)
    assert {"check": "settings", "status": "ok"} in found["findings"]
    typo = {"check": "settings", "status": "warning", "text": "WORKER_TYPO is not a setting"}
    assert typo in found["findings"]
    [redis] = [finding for finding in found["findings"] if finding["check"] == "redis"]
    assert (redis["status"], redis["see"]) == ("error", "REDIS_URL")
    assert "workers" in {finding["check"] for finding in found["findings"]}


def test_wrong_settings_are_json_too(environ: dict[str, str]) -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"], env={**environ, "SYNAPSE_HOST": "backend"})

    assert done.exit_code == 1
    assert json.loads(done.stdout)["findings"][0] == {
        "check": "settings",
        "status": "error",
        "text": "SYNAPSE_HOST must start with http:// or https://",
    }


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (None, "✓ backend: answers and knows both tokens"),
        (AuthorizationError("403", 403), "✓ backend: answers and knows both tokens"),
        (
            AuthenticationError("401", 401),
            "✗ backend: does not know the token of plugin code: create one, or unset it"
            " (see WORKER_PLUGIN_ACCESS_TOKEN)",
        ),
    ],
)
def test_token_of_plugin_code_is_checked(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], error: Exception | None, line: str
) -> None:
    def ask(_settings: object, token: SecretStr) -> None:
        if error is not None and token.get_secret_value() == "lesser":
            raise error

    monkeypatch.setattr(doctor_module, "_ask_backend", ask)
    given_workers(monkeypatch, EVERYTHING)

    assert line in doctor({**environ, "WORKER_PLUGIN_ACCESS_TOKEN": "lesser"})


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ({"url": "http://agent"}, "✓ agent: agent 7 of the backend is healthy"),
        ({"url": None}, "! agent: agent 7 has no URL in the backend: the capacity gate asks nobody"),
        (
            NotFoundError("404", 404),
            "✗ agent: the backend has no agent 7: see WORKER_AGENT"
            " (see SYNAPSE_AGENT_URL, SYNAPSE_AGENT_TOKEN)",
        ),
    ],
)
def test_agent_that_the_backend_knows_is_asked(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], found: Any, line: str
) -> None:
    # Given a worker of one agent, whose address only the backend knows
    def get_agent(_id: int) -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    agent = SimpleNamespace(health=lambda: None)
    backend = SimpleNamespace(get_job=lambda _: {}, get_agent=get_agent)
    monkeypatch.setattr(doctor_module, "BackendClient", lambda *_, **__: contextlib.nullcontext(backend))
    monkeypatch.setattr(doctor_module, "AgentClient", lambda *_: contextlib.nullcontext(agent))
    given_workers(monkeypatch, EVERYTHING)

    assert line in doctor({**environ, "WORKER_AGENT": "7"})


@pytest.mark.parametrize(
    ("host", "line"),
    [
        ("process", "! ray: RAY_ADDRESS is not set: a deploy would end FAILED"),
        (
            "ray",
            "! ray: RAY_ADDRESS is not set: a deploy and to_task would end FAILED"
            " (or WORKER_PLUGIN_HOST=process for to_task alone)",
        ),
    ],
)
def test_missing_ray_says_what_would_fail(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], host: str, line: str
) -> None:
    given_workers(monkeypatch, EVERYTHING)

    assert line in doctor({**environ, "WORKER_PLUGIN_HOST": host})


def test_unusable_release_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "broken@1.0.0").mkdir()
    (tmp_path / "broken@1.0.0" / "config.yaml").write_text("actions: 7")
    given_workers(monkeypatch, EVERYTHING)

    output = doctor(environ)

    assert [line for line in output if line.startswith("! plugins: broken@1.0.0 cannot be used: ")]
    assert "✓ plugins: 1 release" in output
