"""The platform's published client and this project's, call by call, on the same agent."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.ray_client.jobs import Cluster, printed
from tests.integration.ray_client.published_client import python_of_published_client
from worker.platform import AgentClient, NotFoundError, ValidationError

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(900)]

MAX_LINE_BYTES = 10_240
"""The published client leaves longer lines out; this project's client cuts them."""

APPLICATIONS = textwrap.dedent("""
    import ray
    from ray import serve

    @serve.deployment(ray_actor_options={"num_cpus": 0.1})
    class Echo:
        def __call__(self, request):
            return "echo"

    @ray.remote(num_cpus=0)
    def add(a, b):
        return a + b

    ray.init(log_to_driver=False)
    for name in ("first@1.0.0", "second@1.0.0"):
        serve.run(Echo.bind(), name=name, route_prefix="/" + name)
    assert ray.get(add.remote(1, 2)) == 3
""")


@pytest.fixture(scope="module")
def python() -> Path:
    return python_of_published_client()


@pytest.fixture(scope="module")
def arguments(python: Path, cluster: Cluster) -> dict[str, Any]:
    """Arguments of both clients: a job that has ended, one to stop, a node, a task, an application."""
    driver = [sys.executable, "-c", APPLICATIONS]
    subprocess.run(driver, env=cluster.sandbox.environment(), check=True, capture_output=True, timeout=120)
    cluster.await_status(cluster.jobs["colours"], "SUCCEEDED")
    stopped = cluster.submit("to_stop", "import time; time.sleep(600)")
    cluster.await_status(stopped, "RUNNING")
    with cluster.client() as client:
        (node,) = client.list_nodes()["results"]
        task = next(each for each in client.list_tasks()["results"] if each["name"] == "add")
    return {
        "url": cluster.sandbox.agent_url,
        "token": cluster.sandbox.agent_token,
        "job": cluster.jobs["colours"],
        "to_stop": stopped,
        "node": node["node_id"],
        "task": task["task_id"],
        "application": "first@1.0.0",
    }


@pytest.fixture(scope="module")
def published(python: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    script = Path(__file__).with_name("sdk_calls.py")
    done = subprocess.run(
        [python, script],
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    return results


@pytest.fixture
def client(cluster: Cluster) -> Iterator[AgentClient]:
    with cluster.client() as client:
        yield client


def test_objects_are_the_same(
    published: dict[str, Any], client: AgentClient, arguments: dict[str, Any]
) -> None:
    assert published["get_job"] == client.get_job(arguments["job"])
    assert (
        published["get_node"]["node_id"] == client.get_node(arguments["node"])["node_id"] == arguments["node"]
    )
    assert published["get_task"] == client.get_task(arguments["task"])
    assert published["list_job_logs"] == client.list_job_logs(arguments["job"])


@pytest.mark.parametrize(
    ("name", "key"), [("list_jobs", "id"), ("list_nodes", "node_id"), ("list_tasks", "task_id")]
)
def test_lists_have_the_same_shape(
    published: dict[str, Any], client: AgentClient, name: str, key: str
) -> None:
    found = getattr(client, name)()

    assert found.keys() == published[name].keys() == {"results"}
    # The cluster changes meanwhile: what the first client saw the second sees, too.
    assert {each[key] for each in published[name]["results"]} <= {each[key] for each in found["results"]}


@pytest.mark.parametrize("protocol", ["websocket", "stream", "auto"])
def test_logs_are_the_same_except_for_long_lines(
    published: dict[str, Any], client: AgentClient, arguments: dict[str, Any], protocol: Any
) -> None:
    name = "tail_job_logs" if protocol == "auto" else f"{protocol}_tail_job_logs"
    lines = list(client.tail_job_logs(arguments["job"], 30, protocol))

    assert printed(lines)[0] == "\x1b[31m빨강\x1b[0m 🙂"
    assert published[name] == [line for line in lines if line and "… [cut: " not in line]
    assert all(len(line.encode()) <= MAX_LINE_BYTES for line in lines)


def test_both_clients_stop_a_job(
    published: dict[str, Any], client: AgentClient, arguments: dict[str, Any], cluster: Cluster
) -> None:
    assert published["stop_job"] == {"stopped": True}
    cluster.await_status(arguments["to_stop"], "STOPPED")
    second = cluster.submit("second_to_stop", "import time; time.sleep(600)")
    cluster.await_status(second, "RUNNING")

    assert client.stop_job(second) == {"stopped": True, "status": "STOPPING"}
    cluster.await_status(second, "STOPPED")

    assert published["stop_ended"] == {"rejected": 400}
    with pytest.raises(ValidationError):
        client.stop_job(arguments["job"])


def test_both_clients_read_and_delete_an_application(published: dict[str, Any], client: AgentClient) -> None:
    names = {each["name"] for each in published["list_serve_applications"]["results"]}
    assert names == {"first@1.0.0", "second@1.0.0"}
    application = client.get_serve_application("second@1.0.0")
    assert published["get_serve_application"].keys() == application.keys()
    assert published["get_serve_application"]["status"] == application["status"] == "RUNNING"
    assert published["delete_serve_application"] is None

    assert [each["name"] for each in client.list_serve_applications()["results"]] == ["second@1.0.0"]
    client.delete_serve_application("second@1.0.0")
    assert client.list_serve_applications() == {"results": []}


@pytest.mark.parametrize("name", ["get_job", "get_node", "get_task", "get_serve_application", "stop_job"])
def test_an_unknown_id_is_404_for_both_clients(
    published: dict[str, Any], client: AgentClient, name: str
) -> None:
    assert published[f"{name} none"] == {"rejected": 404}
    with pytest.raises(NotFoundError):
        getattr(client, name)("none")
