"""A deployment on a Redis in memory."""

from pathlib import Path

import pytest
from fakeredis import FakeRedis

from tests.unit.deploy.deploy_harness import DeployHarness
from tests.unit.runs.runs_helpers import RecordingSender


@pytest.fixture
def sender() -> RecordingSender:
    return RecordingSender()


@pytest.fixture
def harness(redis: FakeRedis, sender: RecordingSender, tmp_path: Path) -> DeployHarness:
    harness = DeployHarness(redis, sender, tmp_path)
    harness.accept()
    return harness
