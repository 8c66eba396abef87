"""The platform's published client and ours, call by call, on the same agent."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.integration.ray_client.jobs import Cluster, printed
from tests.integration.ray_client.published_client import python_of_published_client
from worker.platform import AgentClient, NotFoundError, ValidationError

pytestmark = [pytest.mark.sdk, pytest.mark.slow, pytest.mark.timeout(900)]

MAX_SECONDS_THERE = 10_240
"""The published client leaves longer lines out; ours cuts them."""

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
    for name in ("theirs@1.0.0", "ours@1.0.0"):
        serve.run(Echo.bind(), name=name, route_prefix="/" + name)
    assert ray.get(add.remote(1, 2)) == 3
""")


@pytest.fixture(scope="module")
def python() -> Path:
    return python_of_published_client()


@pytest.fixture(scope="module")
def asked(python: Path, cluster: Cluster) -> dict[str, Any]:
    """What both are asked about: a job that has ended, one to stop, a node, a task, an application."""
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
        "application": "theirs@1.0.0",
    }


@pytest.fixture(scope="module")
def theirs(python: Path, asked: dict[str, Any]) -> dict[str, Any]:
    script = Path(__file__).with_name("sdk_calls.py")
    done = subprocess.run(
        [python, script], input=json.dumps(asked), capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


@pytest.fixture
def ours(cluster: Cluster) -> Any:
    with cluster.client() as client:
        yield client


def test_objects_are_the_same(theirs: dict[str, Any], ours: AgentClient, asked: dict[str, Any]) -> None:
    assert theirs["get_job"] == ours.get_job(asked["job"])
    assert theirs["get_node"]["node_id"] == ours.get_node(asked["node"])["node_id"] == asked["node"]
    assert theirs["get_task"] == ours.get_task(asked["task"])
    assert theirs["list_job_logs"] == ours.list_job_logs(asked["job"])


@pytest.mark.parametrize(
    ("name", "key"), [("list_jobs", "id"), ("list_nodes", "node_id"), ("list_tasks", "task_id")]
)
def test_lists_have_the_same_shape(theirs: dict[str, Any], ours: AgentClient, name: str, key: str) -> None:
    found = getattr(ours, name)()

    assert found.keys() == theirs[name].keys() == {"results"}
    # The cluster lives on between the two; what the one saw the other sees too.
    assert {each[key] for each in theirs[name]["results"]} <= {each[key] for each in found["results"]}


@pytest.mark.parametrize("protocol", ["websocket", "stream", "auto"])
def test_logs_are_the_same_but_for_what_the_other_leaves_out(
    theirs: dict[str, Any], ours: AgentClient, asked: dict[str, Any], protocol: Any
) -> None:
    name = "tail_job_logs" if protocol == "auto" else f"{protocol}_tail_job_logs"
    lines = list(ours.tail_job_logs(asked["job"], 30, protocol))

    assert printed(lines)[0] == "\x1b[31m빨강\x1b[0m 🙂"
    assert theirs[name] == [line for line in lines if line and "… [cut: " not in line]
    assert all(len(line.encode()) <= MAX_SECONDS_THERE for line in lines)


def test_a_job_is_stopped_by_either(
    theirs: dict[str, Any], ours: AgentClient, asked: dict[str, Any], cluster: Cluster
) -> None:
    assert theirs["stop_job"] == {"stopped": True}
    cluster.await_status(asked["to_stop"], "STOPPED")
    mine = cluster.submit("ours_to_stop", "import time; time.sleep(600)")
    cluster.await_status(mine, "RUNNING")

    assert ours.stop_job(mine) == {"stopped": True, "status": "STOPPING"}
    cluster.await_status(mine, "STOPPED")

    assert theirs["stop_ended"] == {"refused": 400}
    with pytest.raises(ValidationError):
        ours.stop_job(asked["job"])


def test_an_application_is_seen_and_deleted_by_either(theirs: dict[str, Any], ours: AgentClient) -> None:
    names = {each["name"] for each in theirs["list_serve_applications"]["results"]}
    assert names == {"theirs@1.0.0", "ours@1.0.0"}
    application = ours.get_serve_application("ours@1.0.0")
    assert theirs["get_serve_application"].keys() == application.keys()
    assert theirs["get_serve_application"]["status"] == application["status"] == "RUNNING"
    assert theirs["delete_serve_application"] is None

    assert [each["name"] for each in ours.list_serve_applications()["results"]] == ["ours@1.0.0"]
    ours.delete_serve_application("ours@1.0.0")
    assert ours.list_serve_applications() == {"results": []}


@pytest.mark.parametrize("name", ["get_job", "get_node", "get_task", "get_serve_application", "stop_job"])
def test_what_is_not_there_is_404_for_both(theirs: dict[str, Any], ours: AgentClient, name: str) -> None:
    assert theirs[f"{name} none"] == {"refused": 404}
    with pytest.raises(NotFoundError):
        getattr(ours, name)("none")
