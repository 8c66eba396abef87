"""A worker in namespaces where no node of the Ray cluster runs: `ray://` and one port are enough."""

import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.chaos.namespaces import OtherMachine, missing_rights, veth_pair
from tests.integration.workflows.conftest import PLUGINS
from tests.integration.workflows.ray_harness import RayHarness
from worker.sandbox import Sandbox
from worker.sandbox.processes import clean_environment

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
MAX_WAIT_SECONDS = 300
CHECK = """
import sys
from worker.cli import cluster
cluster.CONNECT_TIMEOUT_SECONDS = 120  # a busy machine
print(cluster.check_cluster(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[OtherMachine]:
    if reason := missing_rights():
        pytest.skip(reason)
    with veth_pair() as made:
        yield made


@pytest.fixture(scope="module")
def sandbox(machine: OtherMachine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    folder = tmp_path_factory.mktemp("sandbox")
    with Sandbox(folder, plugins_dir=PLUGINS, num_cpus=4, ray_node_address=machine.address) as sandbox:
        assert sandbox.agent_url is not None
        urls = (sandbox.backend_url, sandbox.agent_url, sandbox.redis_url)
        with machine.forwarded([urlsplit(url).port or 0 for url in urls]):
            yield sandbox


def prefix(machine: OtherMachine, sandbox: Sandbox) -> list[str]:
    """There, not even the folder with Ray's sockets is seen."""
    assert sandbox.ray is not None
    assert sandbox.ray.temp_dir is not None
    return machine.prefix(sandbox.ray.temp_dir)


def test_a_worker_elsewhere_deploys_and_converts(machine: OtherMachine, sandbox: Sandbox) -> None:
    # Given a worker that reaches no process of Ray's, and of its ports only that of Ray Client
    assert sandbox.ray is not None
    env = {"RAY_ADDRESS": sandbox.ray.client_address}
    worker = sandbox.start_worker(env=env, seconds=180, prefix=prefix(machine, sandbox))
    harness = RayHarness(sandbox, worker)

    # When it deploys, and converts
    deployed = harness.wait_for_end(harness.deploy("echo@1.0.0", num_cpus=1), MAX_WAIT_SECONDS)
    project = harness.new_project(20)
    converted = harness.wait_for_end(harness.to_task_by_file(project), MAX_WAIT_SECONDS)

    # Then the application answers, and all tasks are annotated
    assert deployed["status"] == "SUCCEEDED", deployed
    assert harness.call_application("echo@1.0.0", {"text": "hello"}) == {"said": "hello", "by": "1.0.0"}
    assert converted["status"] == "SUCCEEDED", converted
    assert len(harness.annotated_tasks(project)) == 20


@pytest.mark.parametrize(("is_client", "answer"), [(True, "no Ray node runs here"), (False, "set ray://")])
def test_the_check_says_which_address_fits(
    machine: OtherMachine, sandbox: Sandbox, is_client: bool, answer: str
) -> None:
    assert sandbox.ray is not None
    address = sandbox.ray.client_address if is_client else sandbox.ray.address

    done = subprocess.run(
        [*prefix(machine, sandbox), sys.executable, "-c", CHECK, address],
        env={**clean_environment(), **sandbox.ray.environment()},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )

    assert answer in done.stdout + done.stderr
    assert done.returncode == (0 if is_client else 1)
