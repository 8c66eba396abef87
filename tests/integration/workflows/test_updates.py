"""Updates of a running application with changed code on a real Ray, under load."""

import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.integration.workflows.ray_harness import RayHarness, Row, replicas, write_release
from worker.sandbox.processes import clean_environment

CLIENTS = 4
PACE_SECONDS = 0.02
"""Between two requests of a client, which would else leave the machine no time for the updates."""
CODE = """
    from worker.actions import BaseServeDeployment

    class Served(BaseServeDeployment):
        def __init__(self, backend_url):
            {start}

        async def infer(self, data):
            return {{"by": {number}}}
"""


class Load:
    """Clients that ask all the time, and what they got."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.lost: list[str] = []
        self._ended = threading.Event()

    @contextmanager
    def on(self, url: str) -> Iterator["Load"]:
        threads = [threading.Thread(target=self._ask, args=(url,)) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            for thread in threads:
                thread.join()

    def _ask(self, url: str) -> None:
        with httpx.Client(timeout=30) as client:
            while not self._ended.wait(PACE_SECONDS):
                try:
                    answer = client.post(url, json={})
                    answer.raise_for_status()
                    self.answers.append(answer.json()["by"])
                except (httpx.HTTPError, ValueError, KeyError) as error:
                    self.lost.append(f"{type(error).__name__}: {error}")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "updates", [pytest.param(3, marks=pytest.mark.ray), pytest.param(20, marks=pytest.mark.chaos)]
)
def test_no_request_is_lost_over_updates(harness: RayHarness, store: Path, updates: int) -> None:
    # Given an application that answers under the route that the backend knows
    code = f"updated{updates}"
    name = f"{code}@1.0.0"
    assert not deploy(harness, store, code, 0)
    [record] = records(harness, name)
    url = f"{harness.serve_url}{record['data']['route_prefix']}/"

    with Load().on(url) as load:
        # When its release is deployed again and again with changed code, and once with code that cannot start
        for number in range(1, updates + 1):
            assert not deploy(harness, store, code, number)
        before = replicas(harness, name)
        error = deploy(harness, store, code, -1, "raise ValueError('no weights')")

        # Then the failed update leaves the replicas as they were, under their route
        harness.wait_for(lambda: harness.serve_applications()[name]["status"] == "RUNNING", "old content")
        assert "no weights" in error
        assert replicas(harness, name) == before
        assert httpx.post(url, json={}, timeout=30).json() == {"by": updates}

    # And no request is lost, and each version has answered
    assert load.lost == []
    assert sorted(set(load.answers)) == list(range(updates + 1))
    # And every record of the application names the route in force
    assert {each["data"]["route_prefix"] for each in records(harness, name)} == {
        record["data"]["route_prefix"]
    }


@pytest.mark.ray
def test_an_application_is_rolled_back_and_removed(harness: RayHarness, store: Path) -> None:
    # Given an application that was updated with code that answers differently
    name = "rolled@1.0.0"
    assert not deploy(harness, store, "rolled", 0)
    assert not deploy(harness, store, "rolled", 1)
    route = harness.serve_applications()[name]["route_prefix"]

    # When it is rolled back, then what ran before answers under the same route
    assert command(harness, "rollback", name) == (0, f"{name} runs what it ran before its last update")
    assert harness.call_application(name, {}) == {"by": 0}
    assert harness.serve_applications()[name]["route_prefix"] == route

    # When that is repeated, then nothing changes
    before = replicas(harness, name)
    said = f"{name} has already what it ran before its last update"
    assert command(harness, "rollback", name) == (0, said)
    assert replicas(harness, name) == before

    # When it is removed, then it is gone, and a repetition says so
    assert command(harness, "undeploy", name) == (0, f"{name} was removed")
    assert name not in harness.serve_applications()
    assert command(harness, "undeploy", name) == (0, f"{name} is not on Ray Serve: nothing to remove")
    code, said = command(harness, "rollback", name)
    assert (code, said.partition(" There")[0]) == (1, f"error: there is no application {name} on Ray Serve")


def command(harness: RayHarness, *arguments: str) -> tuple[int, str]:
    """Run `synapse-worker` beside a worker; returns its exit code, and what it says in one line."""
    program = Path(sys.executable).with_name("synapse-worker")
    environment = {**clean_environment(), **harness.sandbox.environment(), "COLUMNS": "200"}
    done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def deploy(harness: RayHarness, store: Path, code: str, number: int, start: str = "pass") -> str:
    """Change the release's code, and deploy it once a worker has seen that; returns the job's error."""
    write_release(store, code, textwrap.dedent(CODE).format(start=start, number=number))
    name = f"{code}@1.0.0"
    before = len(records(harness, name))
    while True:
        end = harness.wait_for_end(harness.deploy(name, num_cpus=0.1))
        if end["status"] == "FAILED":
            return str(end["result"]["error"])
        answer = harness.call_application(name, {})
        if answer == {"by": number}:
            assert len(records(harness, name)) > before
            return ""


def records(harness: RayHarness, name: str) -> list[Row]:
    """The backend's records of an application."""
    return harness.state.rows("SELECT * FROM serve_applications WHERE application = ? ORDER BY id", name)
