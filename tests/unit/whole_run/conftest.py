"""A run whose action runs whole, on a Redis and a Ray cluster in memory."""

from pathlib import Path

import pytest
from fakeredis import FakeRedis

from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.deploy.deploy_harness import DeployHarness
from worker.testing import FakeJobs


@pytest.fixture
def sender() -> RecordingPublisher:
    return RecordingPublisher()


@pytest.fixture
def harness(redis: FakeRedis, sender: RecordingPublisher, tmp_path: Path) -> DeployHarness:
    harness = DeployHarness(redis, sender, tmp_path)
    harness.accept()
    harness.update_state(whole_run={"methods": ["execute"], "runner": "sdk"})
    return harness


@pytest.fixture
def jobs() -> FakeJobs:
    return FakeJobs()
