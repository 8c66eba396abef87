"""Metrics and probes of real workers, and a real Prometheus that scrapes and queries them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from tests.harness.brokers import session_broker
from tests.harness.monitoring_files import RULES, expressions
from tests.harness.prometheus import query, running_prometheus
from tests.integration.safety.proxied_harness import ProxiedHarness
from worker.sandbox.processes import free_port

TASKS = 30
MAX_IDLE_CONNECTIONS = 6


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[ProxiedHarness]:
    """A worker that has annotated a project, with metrics."""
    harness = ProxiedHarness(tmp_path_factory.mktemp("monitoring"))
    try:
        harness.start(WORKER_HTTP_PORT=str(port))
        job = harness.to_task(harness.new_project(TASKS))
        assert harness.wait_for_end(job)["status"] == "SUCCEEDED"
        harness.send_task("deploy", "deploy", {"nothing": "right"})
        harness.wait_for(harness.dead_letters, "the dead letter")
        yield harness
    finally:
        harness.close()


def probe(harness: ProxiedHarness, *command: str) -> tuple[int, str]:
    """Exit code and output of a command of `synapse-worker`, in the environment of the worker."""
    environ = {**os.environ, **harness.sandbox.environment()}
    run = [str(Path(sys.executable).with_name("synapse-worker")), *command]
    done = subprocess.run(run, capture_output=True, text=True, env=environ, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[str]:
    """The address of a Prometheus that scrapes the port."""
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), port) as address:
        yield address


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ('sum(synapse_worker_annotations_total{result="success"})', TASKS),
        ('sum(synapse_worker_runs_accepted_total{action="to_task"})', 1),
        ('sum(synapse_worker_runs_ended_total{action="to_task",status="SUCCEEDED"})', 1),
        ('sum(synapse_worker_step_seconds_count{step="to_task.finalize",outcome="ended"})', 1),
        ('sum(synapse_worker_dead_letters_total{task="deploy"})', 1),
        ("max(synapse_worker_dead_letters)", 1),
        ("max(synapse_worker_runs_live)", 0),
        pytest.param(
            'max(synapse_worker_queue_messages{queue="annotate",state="waiting"})',
            0,
            marks=pytest.mark.redis_queues("RabbitMQ counts its messages itself"),
        ),
        ('sum(synapse_worker_request_seconds_count{service="backend",status="200"}) >= bool 60', 1),
        ("max(synapse_worker_redis_up)", 1),
    ],
)
def test_prometheus_has_what_the_worker_did(
    harness: ProxiedHarness, prometheus: str, expression: str, expected: float
) -> None:
    harness.wait_for(lambda: query(prometheus, expression) == expected, f"{expression} = {expected}")


def connections(harness: ProxiedHarness) -> int:
    """How many connections to its Redis the worker has."""
    number = urlsplit(harness.redis_url).port
    open_ones = psutil.Process(harness.worker.pid).net_connections("tcp")
    return sum(each.raddr != () and each.raddr[1] == number for each in open_ones)


@pytest.mark.slow
@pytest.mark.redis_queues("with RabbitMQ most of them are elsewhere")
def test_an_idle_worker_has_few_connections(harness: ProxiedHarness, port: int) -> None:
    # Given a worker that has worked on all of its threads, and does what one of all workers does
    harness.wait_for(lambda: len(harness.redis.keys("synapse:maintenance:*")) == 3, "its leases")

    # When those connections were idle for a while, then they are closed
    harness.wait_for(lambda: connections(harness) <= MAX_IDLE_CONNECTIONS, "few connections")

    # And neither its periodic work nor a scrape leaves more of them
    counts: list[int] = []
    renewed = 0
    left = harness.redis.pttl("synapse:maintenance:sweep")

    def is_renewed_often() -> bool:
        nonlocal left, renewed
        httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).raise_for_status()
        counts.append(connections(harness))
        before, left = left, harness.redis.pttl("synapse:maintenance:sweep")
        renewed += left > before
        return renewed == 3

    harness.wait_for(is_renewed_often, "three looks of the sweep")
    # On a busy machine a thread may wait in vain for the shared connection.
    assert sum(count > MAX_IDLE_CONNECTIONS for count in counts) <= len(counts) / 10, counts


@pytest.mark.parametrize("expression", expressions())
def test_prometheus_evaluates_rules_and_panels(
    harness: ProxiedHarness, prometheus: str, expression: str
) -> None:
    harness.wait_for(lambda: query(prometheus, "max(synapse_worker_redis_up)") == 1, "the first scrape")

    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression}, trust_env=False)

    assert answer.json()["status"] == "success", answer.text


def test_prometheus_loads_the_rules() -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    done = subprocess.run(
        [program, "check", "rules", str(RULES)], capture_output=True, text=True, check=False
    )

    assert (done.returncode, "9 rules found" in done.stdout) == (0, True), done.stdout + done.stderr


QUEUES = """
rule_files: [{rules}]
evaluation_interval: 1m
tests:
  - interval: 15s
    input_series:
      - {{series: 'synapse_worker_queue_messages{{queue="deploy", state="waiting"}}', values: '5x100'}}
      - {{series: 'synapse_worker_queue_messages{{queue="annotate", state="waiting"}}', values: '{read}'}}
    alert_rule_test:
      - alertname: SynapseWorkerQueueNotRead
        eval_time: 20m
        exp_alerts:
          - exp_labels: {{queue: deploy, severity: critical}}
            exp_annotations: {{summary: 'Messages lie in deploy, and for ten minutes none was taken out.'}}
"""


def test_a_queue_that_is_not_read_is_an_alert_without_workers(tmp_path: Path) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("needs promtool: apt-get install prometheus")
    # Given a queue whose messages stay, one that is read, and no metric that workers alone have
    file = tmp_path / "queues.yml"
    file.write_text(QUEUES.format(rules=RULES, read=" ".join(["9", "12", "7"] * 34)))

    # Then the alert is for the first one alone
    evaluated = subprocess.run(
        [program, "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr


def test_probes_of_a_running_worker_succeed(harness: ProxiedHarness, port: int) -> None:
    assert probe(harness, "live")[0] == 0
    assert probe(harness, "ready")[0] == 0
    assert httpx.get(f"http://127.0.0.1:{port}/ready", trust_env=False).text == "ok\n"


@pytest.mark.redis_queues("RabbitMQ tells no client which queues there are")
def test_doctor_names_a_queue_that_nobody_knows(harness: ProxiedHarness) -> None:
    # Given a message in a queue that its publisher has misspelt
    harness.send_task("to_task", "to_tasks", {"job": 1})

    # When the environment is checked
    code, output = probe(harness, "doctor", "--json")

    # Then that is named with what to do, and nothing is wrong
    found = json.loads(output)
    assert (code, found["healthy"]) == (0, True), output
    texts = [finding["text"] for finding in found["findings"] if finding["status"] == "warning"]
    advice = "publish with queue=, which is one of deploy, to_task, annotate, logs, control"
    assert f"1 message lies in to_tasks, on which nobody listens: {advice}" in texts
    assert {"check": "workers", "status": "ok", "text": "1 answers; each queue has a listener"} in found[
        "findings"
    ]
    harness.redis.delete("to_tasks")


@pytest.mark.slow
def test_two_workers_of_a_host_share_the_port(harness: ProxiedHarness, port: int) -> None:
    # Given a second worker with the same port
    other = harness.sandbox.start_worker(
        queues="logs", env={"WORKER_HTTP_PORT": str(port), "WORKER_PLUGIN_HOST": "process"}
    )
    url = f"http://127.0.0.1:{port}/metrics"

    # When the first one, which has the port, is killed
    harness.worker.kill()
    harness.wait_for(lambda: "process is gone" in probe(harness, "live")[1], "the probe that fails")

    # Then the second serves the page, without the series of the first
    def served() -> bool:
        try:
            return 'worker="worker2@' in httpx.get(url, trust_env=False).text
        except httpx.TransportError:
            return False

    harness.wait_for(served, "the port taken over")
    other.stop()
    harness.start_worker(WORKER_HTTP_PORT=str(port))
    harness.wait_for(lambda: probe(harness, "ready")[0] == 0, "a worker that is ready again")


def test_a_worker_that_lost_its_broker_lives_and_is_not_ready(harness: ProxiedHarness) -> None:
    broker = session_broker.node if session_broker.is_rabbitmq else harness.sandbox.redis
    broker.kill()
    try:
        harness.wait_for(lambda: probe(harness, "ready")[0] == 1, "a worker that is not ready")

        assert "not connected to its broker" in probe(harness, "ready")[1]
        assert probe(harness, "live")[0] == 0
    finally:
        broker.start()
    harness.wait_for(lambda: probe(harness, "ready")[0] == 0, "a worker that is ready again")


def test_a_worker_that_ended_is_not_live(harness: ProxiedHarness) -> None:
    harness.worker.stop()

    assert probe(harness, "live") == (1, "no worker with these settings runs on this host\n")
