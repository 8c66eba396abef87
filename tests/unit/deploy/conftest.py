"""A deployment on a Redis in memory."""

from pathlib import Path

import pytest
from fakeredis import FakeRedis

from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.deploy.deploy_harness import DeployHarness


@pytest.fixture
def sender() -> RecordingPublisher:
    return RecordingPublisher()


@pytest.fixture
def harness(redis: FakeRedis, sender: RecordingPublisher, tmp_path: Path) -> DeployHarness:
    harness = DeployHarness(redis, sender, tmp_path)
    harness.accept()
    return harness
