"""Every command and health check of the compose file, run as in its containers, and a run from end to end."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.deployment.compose import services
from tests.integration.deployment.containers import Containers, containers, why_not_here
from worker.sandbox import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

WORKERS = ("deploy", "to_task", "annotate", "logs", "control")
REPLICA_SECONDS = 240
# A busy machine: Ray kills what starts slowly.
PATIENCE = {
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
        made.start_healthy("ray-head", PATIENCE)
        made.start_healthy("ray-node", PATIENCE)
        for name in ("sandbox-backend", "sandbox-agent", *WORKERS, "flower"):
            made.start_healthy(name)
        yield made


def command(platform: Containers, *arguments: str, code: int = 0, seconds: float = 60) -> str:
    done = platform.running["control"].execute(["synapse-worker", *arguments], seconds)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_every_service_of_the_file_is_started(platform: Containers) -> None:
    assert platform.running.keys() == services().keys()


def test_doctor_finds_the_platform_whole(platform: Containers) -> None:
    # Workers report to `doctor` once their pools have started
    wait_for(
        lambda: platform.running["control"].execute(["synapse-worker", "ready"]).returncode == 0, 60, "ready"
    )

    said = command(platform, "doctor", seconds=180)

    assert "nobody listens" not in said


def test_a_run_passes_all_services(platform: Containers) -> None:
    # When a pre-processor is deployed, and tasks of the sandbox's project are annotated with it
    release = "digits@1.0.0"
    command(platform, "deploy", "1", release, "--agent", "1", "--follow", seconds=REPLICA_SECONDS)
    params = (
        '{"name": "first", "project": 1, "agent": 1, "method": "inference", "pre_processor": %s, "model": 1}'
    )
    pre_processor = _pre_processor(platform, release)
    command(platform, "to-task", "2", release, "--follow", "--params", params % pre_processor, seconds=240)

    # Then both runs have ended well, in the workers' record as in the backend's
    assert "SUCCEEDED" in command(platform, "status", "1")
    assert "SUCCEEDED" in command(platform, "status", "2")


def test_nothing_can_be_written_but_volumes_and_tmp(platform: Containers) -> None:
    for name in WORKERS:
        done = platform.running[name].execute(
            ["touch", "/file", "/home/worker", "/plugins/file", "/tmp/file"]
        )
        assert done.stderr.count("Read-only file system") + done.stderr.count("No such file") == 3, (
            done.stderr
        )


def _pre_processor(platform: Containers, release: str) -> str:
    asked = (
        "import sqlite3; print(sqlite3.connect('/data/backend.sqlite3').execute("
        f"\"SELECT id FROM plugin_releases WHERE code || '@' || version = '{release}'\").fetchone()[0])"
    )
    done = platform.running["sandbox-backend"].execute(["python", "-c", asked])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_secrets_stand_in_no_environment(platform: Containers) -> None:
    texts = {path.read_text().strip() for path in platform.secrets.iterdir()}

    for container in platform.running.values():
        if container.process.poll() is None:
            environment = Path(f"/proc/{container.pid}/environ").read_text()
            assert not [text for text in texts if text in environment], container.name


def test_services_end_in_time_when_they_are_stopped(platform: Containers) -> None:
    # The last test: nothing works after it
    names = (*WORKERS, "flower", "sandbox-agent", "sandbox-backend")
    for name in names:
        platform.running[name].terminate()

    for name in names:
        platform.running[name].process.wait(30)
        assert "Traceback" not in platform.running[name].log.read_text(), platform.running[name].tail()
