"""A plugin that ends its worker each time fails its own run, and no other."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shared import JobStatus
from tests.harness.brokers import session_broker
from tests.harness.sandbox_harness import SandboxHarness
from worker.sandbox import Sandbox, SandboxError, wait_for

CONFIG = """
code: deadly
version: 1.0.0
actions:
  to_task: {entrypoint: plugin.ToTask}
"""

PLUGIN = """
import os, signal
from worker.actions import ToTaskAction

class ToTask(ToTaskAction):
    def convert_data_from_file(
        self, primary_file_url, primary_file_name, data_file_url, data_file_name, task_data=None
    ):
        if "bad" in data_file_name:
            with open(DEATHS, "a") as deaths:
                deaths.write("x")
            os.kill(os.getppid(), signal.SIGKILL)
        return {"label": data_file_name}
"""


class Harness(SandboxHarness):
    """A sandbox whose workers run plugin code in child processes, and are started again when they died."""

    def __init__(self, sandbox: Sandbox, deaths: Path) -> None:
        self.sandbox, self._deaths = sandbox, deaths
        self.connect()

    @property
    def deaths(self) -> int:
        return len(self._deaths.read_text()) if self._deaths.exists() else 0

    def keep_a_worker(self, until: Callable[[], object]) -> None:
        """Start a worker each time that none lives, until the condition holds."""
        env = {"WORKER_PLUGIN_HOST": "process", "WORKER_VISIBILITY_TIMEOUT_SECONDS": "10"}
        while not until():
            try:
                worker = self.sandbox.start_worker(env=env)
            except SandboxError:
                continue  # It died as soon as it was ready.
            wait_for(lambda: until() or not worker.alive, self.MAX_WAIT_SECONDS, "an end of worker or runs")  # noqa: B023


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    plugins, deaths = tmp_path / "plugins", tmp_path / "deaths"
    release = plugins / "deadly@1.0.0"
    release.mkdir(parents=True)
    (release / "config.yaml").write_text(CONFIG)
    (release / "plugin.py").write_text(f"DEATHS = {str(deaths)!r}\n{PLUGIN}")
    with Sandbox(
        tmp_path / "sandbox", plugins_dir=plugins, with_ray=False, broker_url=session_broker.new_url()
    ) as sandbox:
        yield Harness(sandbox, deaths)


@pytest.mark.chaos
def test_plugin_that_ends_five_workers_fails_its_run_alone(harness: Harness) -> None:
    # Given a run whose file ends every worker that converts it, and another of the same plugin
    deadly, other = harness.new_project(3), harness.new_project(30)
    harness.state.execute(
        "UPDATE data_units SET files = replace(files, '1.json', 'bad.json') WHERE id = ?",
        deadly.data_units[1],
    )
    deadly_job = harness.to_task(deadly, "deadly@1.0.0", method="file", target_specification_name="label_1")
    harness.keep_a_worker(until=lambda: harness.deaths >= 2)
    other_job = harness.to_task(other, "deadly@1.0.0", method="file", target_specification_name="label_1")

    # When a worker is started again each time that it died
    jobs = (deadly_job, other_job)
    harness.keep_a_worker(until=lambda: all(JobStatus(harness.job(job)["status"]).is_final for job in jobs))

    # Then the run ends FAILED with the reason after the fifth
    end = harness.job(deadly_job)
    assert (end["status"], harness.deaths) == ("FAILED", 5)
    assert end["result"]["error"].startswith("5 workers died during to_task.annotate:0; see why they ended")
    # And the other run has written each task
    assert harness.job(other_job)["result"]["success_count"] == 30
    written = harness.write_counts(other)
    # Once, but for what it had in flight when a worker died beside it, as RabbitMQ delivers both at once.
    assert set(written) == {1} or (session_broker.is_rabbitmq and min(written) >= 1)
