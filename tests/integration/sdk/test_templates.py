"""The templates of the published SDK, with the least filled in, on a sandbox with the SDK's own Python."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.ray_client.published_client import python_with_worker

ROOT = Path(__file__).parents[3]


def run(what: str, seconds: float) -> dict[str, Any]:
    command = [python_with_worker(), "-m", "tests.integration.sdk.run_templates", what]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def assert_by_file(done: dict[str, Any]) -> None:
    """The run has annotated each task with its hook, and what the hook said has arrived."""
    assert (done["status"], done["result"]["success_count"]) == ("SUCCEEDED", 5)
    assert done["data"] == [{"label": f"{n}.json", "project": done["project"]} for n in range(5)]
    assert sorted(line for line in done["log"] if line.startswith("reads")) == [
        f"reads {n}.json" for n in range(5)
    ]
    assert done["progress"]["steps"]["reading"]["percent"] == 50
    assert done["metrics"]["steps"]["reading"] == {"files": 1}
    metric = {"category": "read", "key": "file", "value": 1, "metrics": {"size": 2}}
    assert done["events"].count(["metric", metric]) == 5


@pytest.mark.slow
@pytest.mark.timeout(900)  # the first time the environment is made
def test_a_generated_to_task_annotates_by_file() -> None:
    assert_by_file(run("by_file", 120)["to_task"])


@pytest.mark.sdk
@pytest.mark.timeout(900)
def test_generated_releases_run_on_ray() -> None:
    # When the releases of the templates are deployed and annotate
    done = run("on_ray", 600)

    # Then the to_task does by file what it does without Ray
    assert_by_file(done["by_file"])
    # And the deployment is registered
    assert done["deployment"]["status"] == "SUCCEEDED"
    assert isinstance(done["deployment"]["result"]["serve_application"], int)
    # And it and the decorated form of the SDK's documentation answer with the model of a signed token
    for code in ("sdk-net", "sdk-decorated"):
        said = [{"said": f"Hello {n}.png", "backend": done["backend_url"]} for n in range(5)]
        assert done[code]["data"] == said, done[code]["result"]
    # And the example of this repository annotates by its own pre-processor
    assert done["example"]["data"] == [{"label": "neutral"}] * 5, done["example"]["result"]
    # And an `execute` of the author's own runs whole: it deploys and registers
    assert done["execute"]["status"] == "SUCCEEDED", done["execute"]
    assert isinstance(done["execute"]["result"]["serve_application"], int)
    assert done["execute"]["log"].count("deploys in its own way") == 1
    # And so do steps of the author's own, whose result is the run's
    assert done["succeed"]["result"]["success_count"] == 7, done["succeed"]
    assert "takes back {'wrote': 1}" not in done["succeed"]["log"]
    # And which are taken back when one fails
    error = "Plugin sdk-steps@0.1.0 failed: ValueError: Step 'check' failed: it does not fit"
    assert (done["fail"]["status"], done["fail"]["result"]) == ("FAILED", {"error": error})
    assert "takes back {'wrote': 1}" in done["fail"]["log"]
