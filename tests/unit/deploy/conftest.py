"""A deployment on a Redis in memory."""

from pathlib import Path

import pytest
from fakeredis import FakeRedis

from tests.unit.deploy.deploy_helpers import Yard
from tests.unit.runs.runs_helpers import RecordingSender


@pytest.fixture
def sender() -> RecordingSender:
    return RecordingSender()


@pytest.fixture
def yard(redis: FakeRedis, sender: RecordingSender, tmp_path: Path) -> Yard:
    yard = Yard(redis, sender, tmp_path)
    yard.accept()
    return yard
