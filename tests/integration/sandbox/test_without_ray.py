"""A sandbox without Ray: Redis and the backend."""

from collections.abc import Iterator

import celery
import httpx
import psutil
import pytest

from worker.sandbox import Sandbox
from worker.sandbox.seed import seed_numbered_project


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    plugins = tmp_path_factory.mktemp("plugins")
    release = plugins / "digits@1.0.0"
    release.mkdir()
    (release / "config.yaml").write_text("code: digits\nversion: 1.0.0\nactions: {}\n")
    with Sandbox(plugins_dir=plugins, with_ray=False) as sandbox:
        yield sandbox


@pytest.fixture
def backend(sandbox: Sandbox) -> Iterator[httpx.Client]:
    headers = {"Synapse-Access-Token": f"Token {sandbox.access_token}"}
    with httpx.Client(base_url=sandbox.backend_url, headers=headers) as client:
        yield client


def test_environment_has_the_settings_of_a_worker(sandbox: Sandbox) -> None:
    environ = sandbox.environment()
    assert environ["SYNAPSE_HOST"] == sandbox.backend_url
    assert environ["REDIS_URL"] == sandbox.redis_url
    assert "RAY_ADDRESS" not in environ
    assert sandbox.agent_url is None


def test_command_lines_have_no_token(sandbox: Sandbox) -> None:
    assert sandbox.backend.process is not None
    commands = [" ".join(psutil.Process(pid).cmdline()) for pid in sandbox.backend.process.pids()]
    assert commands
    assert not any(sandbox.access_token in command or sandbox.plugin_token in command for command in commands)


def test_annotation_survives_a_kill_of_the_backend(sandbox: Sandbox, backend: httpx.Client) -> None:
    (task,) = seed_numbered_project(sandbox.state, 1).tasks
    body = {"action": "submit", "data": {"label": 1}}
    assert backend.put(f"/tasks/{task}/annotate_task_data/", json=body).status_code == 200
    sandbox.backend.kill()
    with pytest.raises(httpx.TransportError):
        backend.get(f"/tasks/{task}/")
    sandbox.backend.start()
    assert backend.get(f"/tasks/{task}/").json()["data"] == {"label": 1}
    assert sandbox.state.value("SELECT count(*) FROM annotations WHERE task = ?", task) == 1


def test_deployment_is_published(sandbox: Sandbox, backend: httpx.Client) -> None:
    body = {"agent": 1, "action": "deployment", "params": {"num_cpus": 1}}
    answer = backend.post("/plugins/digits/run/", json=body)
    assert answer.status_code == 201
    with celery.Celery(broker=sandbox.redis_url, set_as_current=False) as app, app.connection() as connection:
        message = connection.SimpleQueue("deploy").get(timeout=5)
        message.ack()
    assert message.headers["task"] == "deploy"
    _, kwargs, _ = message.payload
    assert kwargs["job"] == str(answer.json()["id"])
    assert kwargs["plugin"] == "digits@1.0.0"


def test_unavailable_queue_is_a_503(sandbox: Sandbox, backend: httpx.Client) -> None:
    sandbox.redis.stop()
    try:
        answer = backend.post("/plugins/digits/run/", json={"agent": 1, "action": "deployment", "params": {}})
        assert answer.status_code == 503
    finally:
        sandbox.redis.start()


def test_files_are_served(sandbox: Sandbox) -> None:
    (sandbox.files_dir / "label.json").write_text("{}")
    assert httpx.get(f"{sandbox.files_url}/label.json").json() == {}
