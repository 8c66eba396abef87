"""Every command and health check of the compose file, run as in its containers, and a run from end to end."""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.integration.deployment.chart import KEDA_SCRIPT, Manifest, metric, of_kind, redis_keys, render
from tests.integration.deployment.compose import services
from tests.integration.deployment.containers import Containers, containers, why_not_here
from worker.sandbox import wait_for

pytestmark = [pytest.mark.deployment, pytest.mark.timeout(1200)]

WORKERS = ("deploy", "to_task", "annotate", "logs", "control")
MAX_RUN_SECONDS = 400
# Ray kills what starts slowly.
SLOW_MACHINE = {
    "RAY_worker_niceness": "0",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "120",
}


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """All services, started in the order of their `depends_on`, each healthy before what needs it."""
    if reason := why_not_here():
        pytest.skip(reason)
    with containers(tmp_path_factory.mktemp("compose"), services()) as made:
        made.start_healthy("redis")
        made.start_healthy("ray-head", SLOW_MACHINE)
        made.start_healthy("ray-node", SLOW_MACHINE)
        for name in ("sandbox-backend", "sandbox-agent", *WORKERS, "flower", "console"):
            made.start_healthy(name)
        yield made


def command(platform: Containers, *arguments: str, code: int = 0, seconds: float = 60) -> str:
    done = platform.running["control"].execute(["synapse-worker", *arguments], seconds)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_every_service_of_the_file_is_started(platform: Containers) -> None:
    assert platform.running.keys() == services().keys()


def test_probes_and_metrics_are_answered_to_others(platform: Containers) -> None:
    # Given the address of each worker, as kubelet and Prometheus use it
    ask = (
        "import http.client, sys; c = http.client.HTTPConnection(sys.argv[1], 9400, timeout=10);"
        " c.request('GET', sys.argv[2]); a = c.getresponse(); print(a.status, a.read().decode())"
    )
    expected = {"/live": "200", "/ready": "200", "/metrics": "200"}

    for worker in WORKERS:
        for path, status in expected.items():
            done = platform.running["flower"].execute(["python", "-c", ask, worker, path])
            assert done.stdout.startswith(status), (worker, path, done.stdout, done.stderr)
        assert "synapse_worker_queue_messages" in done.stdout


def test_doctor_finds_the_platform_whole(platform: Containers) -> None:
    # Workers report to `doctor` once their pools have started
    wait_for(
        lambda: platform.running["control"].execute(["synapse-worker", "ready"]).returncode == 0, 60, "ready"
    )

    said = command(platform, "doctor", seconds=180)

    assert "nobody listens" not in said


def composite_metrics(platform: Containers, scaled: Mapping[str, Manifest]) -> dict[str, float]:
    """What KEDA would compute for each role, by its own script on the platform's Redis."""
    ask = 'REDISCLI_AUTH=$(cat /run/secrets/redis_password) exec redis-cli eval "$0" 1 "$1"'
    counts: dict[str, float] = {}
    for key in {key for object_ in scaled.values() for key in redis_keys(object_).values()}:
        done = platform.running["redis"].execute(["sh", "-c", ask, KEDA_SCRIPT, key])
        counts[key] = float(done.stdout)
    return {
        name: metric(object_, {trigger: counts[key] for trigger, key in redis_keys(object_).items()})
        for name, object_ in scaled.items()
    }


def test_a_run_passes_all_services_and_keeps_their_replicas(platform: Containers) -> None:
    scaled = of_kind(render(), "ScaledObject")

    # When a pre-processor is deployed, and tasks of the sandbox's project are annotated with it
    release = "digits@1.0.0"
    command(platform, "deploy", "1", release, "--agent", "1", "--follow", seconds=MAX_RUN_SECONDS)
    params = {
        "name": "first",
        "project": 1,
        "agent": 1,
        "method": "inference",
        "pre_processor": _pre_processor(platform, release),
        "model": 1,
    }
    command(platform, "to-task", "2", release, "--params", json.dumps(params))

    # Then each scaled role has work for a replica for as long as the run lives
    seen = []
    deadline = time.monotonic() + MAX_RUN_SECONDS
    while time.monotonic() < deadline:
        metrics = composite_metrics(platform, scaled)
        state = command(platform, "status", "2")
        if any(status in state for status in ("SUCCEEDED", "FAILED", "STOPPED")):
            break
        seen.append(metrics)
    assert seen
    assert all(value >= 1 for metrics in seen for value in metrics.values()), seen
    # And it has ended well, after which there is nothing to stay for
    assert "SUCCEEDED" in state
    wait_for(lambda: set(composite_metrics(platform, scaled).values()) == {0.0}, 120, "there is still work")


def test_nothing_can_be_written_but_volumes_and_tmp(platform: Containers) -> None:
    for name in WORKERS:
        done = platform.running[name].execute(
            ["touch", "/file", "/home/worker", "/plugins/file", "/tmp/file"]
        )
        assert done.stderr.count("Read-only file system") + done.stderr.count("No such file") == 3, (
            done.stderr
        )


def _pre_processor(platform: Containers, release: str) -> int:
    ask = (
        "import sqlite3; print(sqlite3.connect('/data/backend.sqlite3').execute("
        f"\"SELECT id FROM plugin_releases WHERE code || '@' || version = '{release}'\").fetchone()[0])"
    )
    done = platform.running["sandbox-backend"].execute(["python", "-c", ask])
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_secrets_stand_in_no_environment(platform: Containers) -> None:
    texts = {path.read_text().strip() for path in platform.secrets.iterdir()}

    for container in platform.running.values():
        if container.process.poll() is None:
            environment = Path(f"/proc/{container.pid}/environ").read_text()
            assert not [text for text in texts if text in environment], container.name


def test_services_end_in_time_when_they_are_stopped(platform: Containers) -> None:
    # The last test: nothing works after it
    names = (*WORKERS, "flower", "console", "sandbox-agent", "sandbox-backend")
    for name in names:
        platform.running[name].terminate()

    for name in names:
        platform.running[name].process.wait(30)
        assert "Traceback" not in platform.running[name].log.read_text(), platform.running[name].tail()
