"""A release of `plugin new` as it is, on a real Ray: deployed, called, and used by a run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shared import DeployMessage
from tests.harness.sandbox_harness import SandboxHarness
from worker.cli.main import app
from worker.sandbox import Sandbox
from worker.sandbox.sandbox import AGENT_ID

pytestmark = pytest.mark.timeout(600)


class NewPlugins(SandboxHarness):
    """A sandbox whose releases are those of the templates."""

    MAX_WAIT_SECONDS = 300.0

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.connect()
        self.worker = sandbox.start_worker()


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewPlugins]:
    plugins = tmp_path_factory.mktemp("plugins")
    for code, options in {"plain": [], "routed": ["--fastapi"]}.items():
        made = CliRunner().invoke(app, ["plugin", "new", code, *options, "--plugins-dir", str(plugins)])
        assert made.exit_code == 0, made.output
    with Sandbox(plugins_dir=Path(plugins), num_cpus=2) as sandbox:
        yield NewPlugins(sandbox)


@pytest.mark.parametrize("code", ["plain", "routed"])
def test_a_new_release_is_deployed_and_annotates(platform: NewPlugins, code: str) -> None:
    # Given a template's release that is deployed
    plugin = f"{code}@1.0.0"
    deployed = platform.new_job(plugin=plugin, action="deployment")
    platform.publish(
        DeployMessage.model_validate(
            {"job": deployed, "plugin": plugin, "agent": AGENT_ID, "params": {"num_cpus": 0.5}}
        )
    )
    assert platform.wait_for_end(deployed)["status"] == "SUCCEEDED"

    # When tasks are annotated by inference with it
    project = platform.new_project(3)
    job = platform.to_task(
        project, plugin, method="inference", pre_processor=platform.release_id(code), model=1
    )

    # Then each has what the model has answered
    end = platform.wait_for_end(job)
    assert (end["status"], end["result"]["success_count"]) == ("SUCCEEDED", 3), end
    assert platform.write_counts(project) == [1, 1, 1]
