"""Traces of real workers, as a receiver of OTLP gets them."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shared.channels import job_key
from tests.harness.otlp_receiver import OtlpReceiver, ReceivedSpan
from tests.integration.safety.proxied_harness import ProxiedHarness
from tests.integration.safety.recording_proxy import Request, Response
from worker.runs.keys import run_key
from worker.sandbox import Process
from worker.sandbox.processes import clean_environment, free_port, start_process

KEY = "key-of-the-receiver"
NEVER = "3600000"
"""Milliseconds after which a process sends spans by itself."""


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedHarness]:
    """A sandbox without a worker."""
    harness = ProxiedHarness(tmp_path_factory.mktemp("traces"))
    try:
        harness.sandbox.start()
        harness.connect()
        yield harness
    finally:
        harness.close()


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    receiver = OtlpReceiver()
    yield receiver
    receiver.close()


@contextmanager
def worker(harness: ProxiedHarness, endpoint: str, name: str = "one", **env: str) -> Iterator[Process]:
    """A worker that sends its spans there; it ends with the block."""
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_EXPORTER_OTLP_HEADERS": f"api-key={KEY}",
        "OTEL_RESOURCE_ATTRIBUTES": f"service.instance.id={name}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "WORKER_VISIBILITY_TIMEOUT_SECONDS": "10",
        **env,
    }
    process = harness.start_worker(**settings)
    try:
        yield process
    finally:
        process.stop()


def run_command(harness: ProxiedHarness, endpoint: str, *arguments: str) -> None:
    """Run `synapse-worker` with the receiver's address, as somebody would."""
    environ = {
        **clean_environment(),
        "REDIS_URL": harness.redis_url,
        "CELERY_BROKER_URL": harness.broker_url,
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=command",
    }
    command = [str(Path(sys.executable).with_name("synapse-worker")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def publish(harness: ProxiedHarness, receiver: OtlpReceiver, **params: Any) -> str:
    """Publish `to_task` by the command; returns the job."""
    job = harness.new_job(plugin="echo@1.0.0", action="to_task")
    params = harness.to_task_params(harness.new_project(12), **params)
    run_command(harness, receiver.url, "to-task", job, "echo@1.0.0", "--params", json.dumps(params))
    return job


def names(spans: list[ReceivedSpan]) -> set[str]:
    return {span.name for span in spans}


def ended_trace(harness: ProxiedHarness, receiver: OtlpReceiver, job: str) -> list[ReceivedSpan]:
    """The spans of a job whose end was reported."""
    harness.wait_for_end(job)
    ends = {"process to_task.finalize", "report"}

    def is_complete() -> bool:
        spans = receiver.of_job(job)
        reports = [span for span in spans if span.name == "report"]
        return ends <= names(spans) and len(reports) >= 2

    harness.wait_for(is_complete, f"the trace of {job}: {names(receiver.of_job(job))}", 30)
    return receiver.of_job(job)


STEPS = {
    "process to_task",
    "process to_task.initialize",
    "process to_task.prepare",
    "process to_task.fetch_tasks",
    "process to_task.annotate",
    "process to_task.finalize",
}


def test_run_is_one_trace_from_its_publisher_to_the_requests(
    harness: ProxiedHarness, receiver: OtlpReceiver
) -> None:
    # When a run of a published message is worked
    with worker(harness, receiver.url):
        job = publish(harness, receiver)
        spans = ended_trace(harness, receiver, job)

        # Then all of it is one trace, which the publisher has begun
        assert len({span.trace_id for span in spans}) == 1
        [sent] = [span for span in spans if not span.parent_id]
        assert (sent.name, sent.sender) == ("send to_task", "command")
        assert names(spans) >= STEPS
        own = {span.span_id for span in spans if span.name in {*STEPS, "report"}}
        assert {span.parent_id for span in spans if span.span_id in own} == {sent.span_id}
        # And so are the requests, those of one task of the chunk
        requests = [span for span in spans if span.parent_id in own]
        routes = sorted(span.name for span in requests)
        assert routes.count("GET tasks/{id}/") == routes.count("PUT tasks/{id}/annotate_task_data/") == 1
        assert {"GET jobs/{id}/", "GET sdk/tasks/", "PATCH jobs/{id}/"} <= set(routes)
        assert {span.attributes["http.response.status_code"] for span in requests} == {200}
        [chunk] = [span for span in spans if span.name == "process to_task.annotate"]
        assert (chunk.attributes["synapse.tasks.done"], chunk.attributes["synapse.tasks.failed"]) == (12, 0)


def test_spans_have_no_secret_and_the_receiver_its_key(
    harness: ProxiedHarness, receiver: OtlpReceiver
) -> None:
    with worker(harness, receiver.url) as process:
        job = publish(harness, receiver)
        ended_trace(harness, receiver, job)

    # Then no span shows a token, a query, an address or what was sent
    sent = b"\n".join(receiver.bodies)
    planted = (
        *(
            harness.sandbox.access_token,
            harness.sandbox.plugin_token,
            KEY,
            harness.proxy.url,
            harness.redis_url,
        ),
        *("fields=", "expand=", "label_1", "a test"),
    )
    assert [text for text in planted if text.encode() in sent] == []
    assert not [span for span in receiver.of_job(job) if "?" in f"{span.name}{span.attributes}"]
    # And the receiver has got its key, which no log shows
    assert {headers.get("api-key") for headers in receiver.headers} == {KEY, None}  # the command has none
    assert KEY not in process.log.read_text()


def test_inference_carries_the_context_to_the_pre_processor(
    harness: ProxiedHarness, receiver: OtlpReceiver
) -> None:
    # Given a pre-processor that runs
    release = harness.release_id("echo")
    record = {"id": 1, "status": "RUNNING", "plugin_code": "echo", "data": {}, "job": 1}
    running = Response(200, json.dumps({"results": [record], "next": None, "count": 1}).encode())
    answers = Response(200, json.dumps({"label": 1}).encode())

    # When a run asks it for inferences
    with (
        harness.proxy.intercept("GET", "/serve_applications/", running),
        harness.proxy.intercept("POST", "/plugins/echo/run/", answers),
        worker(harness, receiver.url),
    ):
        job = publish(harness, receiver, method="inference", pre_processor=release, model=1)
        spans = ended_trace(harness, receiver, job)

    # Then each request has the context of the run's trace, one of them as a span
    sent = [
        headers["traceparent"].split("-")
        for request in harness.proxy.requests("POST", "/plugins/echo/run/")
        if "traceparent" in (headers := {name.lower(): value for name, value in request.headers.items()})
    ]
    [inference] = [span for span in spans if span.name == "POST plugins/{id}/run/"]
    assert {trace for _, trace, *_ in sent} == {inference.trace_id}
    assert len(sent) == 12
    recorded = [span for _, _, span, flags in sent if int(flags, 16) & 1]
    assert recorded == [inference.span_id]
    assert {"process pre_processor.detect"} <= names(spans)


def test_failed_run_has_its_cleaned_error(harness: ProxiedHarness, receiver: OtlpReceiver) -> None:
    # Given a backend whose error repeats the token
    token = harness.sandbox.access_token
    broken = Response(400, json.dumps({"detail": f"not with token={token}"}).encode())

    with worker(harness, receiver.url), harness.proxy.intercept("GET", "/sdk/tasks/", broken):
        job = publish(harness, receiver)
        ended = harness.wait_for_end(job)
        harness.wait_for(
            lambda: any(span.is_error and span.name.startswith("process") for span in receiver.of_job(job)),
            "the failed step",
            30,
        )

    # Then the step has the error that the job has, and its request the status
    assert ended["status"] == "FAILED"
    failed = [span for span in receiver.of_job(job) if span.is_error]
    [step] = [span for span in failed if span.name.startswith("process")]
    assert (step.name, step.description) == ("process to_task.fetch_tasks", ended["result"]["error"])
    assert [span.attributes["http.response.status_code"] for span in failed if span is not step] == [400]
    assert token.encode() not in b"".join(receiver.bodies)


@pytest.mark.slow
def test_run_of_a_killed_worker_goes_on_in_the_same_trace(
    harness: ProxiedHarness, receiver: OtlpReceiver
) -> None:
    # Given a worker that is killed amid a chunk
    killed: list[Request] = []
    with worker(harness, receiver.url, "first") as first:

        def kill(request: Request) -> None:
            killed.append(request)
            harness.wait_for(lambda: "process to_task.fetch_tasks" in names(receiver.of_job(job)), "spans")
            first.kill()

        with harness.proxy.intercept("PUT", "/tasks/", kill):
            job = harness.new_job(plugin="echo@1.0.0", action="to_task")
            params = harness.to_task_params(harness.new_project(12))
            message = json.dumps(params)
            run_command(harness, receiver.url, "to-task", job, "echo@1.0.0", "--params", message)
            harness.wait_for(lambda: not first.alive, "the kill")

    # When another one takes the run over
    with worker(harness, receiver.url, "second"):
        assert harness.wait_for_end(job)["status"] == "SUCCEEDED"
        harness.wait_for(lambda: "process to_task.finalize" in names(receiver.of_job(job)), "its end", 30)

    # Then both have sent spans of one trace
    steps = [span for span in receiver.of_job(job) if span.name.startswith("process")]
    assert killed
    assert {span.sender for span in steps} == {"first", "second"}
    assert len({span.trace_id for span in steps}) == 1
    [chunk] = [span for span in steps if span.name == "process to_task.annotate"]
    assert (chunk.sender, chunk.attributes["synapse.redelivered"]) == ("second", True)


def test_nothing_is_exported_without_an_endpoint(harness: ProxiedHarness, receiver: OtlpReceiver) -> None:
    before = len(harness.proxy.received)
    with worker(harness, "", OTEL_EXPORTER_OTLP_HEADERS="", OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=receiver.url):
        job = harness.to_task(harness.new_project(3))
        assert harness.wait_for_end(job)["status"] == "SUCCEEDED"

    assert receiver.bodies == []
    assert harness.redis.hexists(job_key(job), "status")
    assert not harness.redis.hexists(run_key(job), "traceparent")
    requests = harness.proxy.received[before:]
    assert requests
    assert not [each for each in requests if "traceparent" in {name.lower() for name in each.headers}]


def test_context_is_one_small_field_of_the_run(harness: ProxiedHarness, receiver: OtlpReceiver) -> None:
    with worker(harness, receiver.url):
        job = publish(harness, receiver)
        [trace] = {span.trace_id for span in ended_trace(harness, receiver, job)}

    stored = harness.redis.hget(run_key(job), "traceparent")
    assert (len(stored), stored.split("-")[1]) == (55, trace)


@pytest.mark.slow
def test_receiver_that_is_down_costs_a_run_nothing(harness: ProxiedHarness) -> None:
    # Given nobody at the endpoint
    with worker(harness, f"http://127.0.0.1:{free_port()}") as process:
        for _ in range(2):
            job = harness.to_task(harness.new_project(3))
            assert harness.wait_for_end(job)["status"] == "SUCCEEDED"
        harness.wait_for(lambda: "traces not sent" in process.log.read_text(), "the warning", 60)

        # When the worker ends
        began = time.monotonic()
        process.stop()

    # Then it has warned once, and was not held up
    assert time.monotonic() - began < 12
    assert process.exit_code == 0
    log = process.log.read_text()
    assert log.count("traces not sent") == 1
    assert "Traceback" not in log


@pytest.mark.parametrize(
    "pool", ["threads", *(pytest.param(pool, marks=pytest.mark.slow) for pool in ("prefork", "solo"))]
)
def test_last_spans_are_sent_when_a_worker_ends(
    harness: ProxiedHarness, receiver: OtlpReceiver, tmp_path: Path, pool: str
) -> None:
    # Given a worker whose spans wait until it ends
    environ = {
        **clean_environment(),
        **harness.sandbox.environment(),
        "WORKER_PLUGIN_HOST": "process",
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url,
        "OTEL_BSP_SCHEDULE_DELAY": NEVER,
    }
    command = [sys.executable, "-m", "celery", "-A", "worker", "worker", "-Q", "to_task,annotate,control"]
    command += ["--pool", pool, "-c", "1" if pool == "solo" else "4", "-l", "INFO", "-n", f"{pool}@%h"]
    process = start_process(pool, command, log=tmp_path / "worker.log", env=environ, grace_seconds=30)
    try:
        job = harness.to_task(harness.new_project(3))
        assert harness.wait_for_end(job)["status"] == "SUCCEEDED"
        assert receiver.of_job(job) == []
    finally:
        # When it ends
        process.stop()

    # Then all of them are there
    spans = receiver.of_job(job)
    assert names(spans) >= STEPS, (tmp_path / "worker.log").read_text()
    assert len({span.trace_id for span in spans}) == 1
