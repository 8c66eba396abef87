"""A waiting room on a Redis in memory."""

from pathlib import Path

import pytest
from fakeredis import FakeRedis

from tests.unit.pre_processor.room_helpers import FakeBackend, FakeServices, Hall, make_services
from tests.unit.runs.runs_helpers import RecordingSender


@pytest.fixture
def sender() -> RecordingSender:
    return RecordingSender()


@pytest.fixture
def services(redis: FakeRedis, sender: RecordingSender, tmp_path: Path) -> FakeServices:
    return make_services(redis, sender, tmp_path)


@pytest.fixture
def api(services: FakeServices) -> FakeBackend:
    return services.api


@pytest.fixture
def hall(services: FakeServices, sender: RecordingSender) -> Hall:
    return Hall(services, sender)
