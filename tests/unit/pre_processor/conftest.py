"""A waiting list on a Redis in memory."""

from pathlib import Path

import pytest
from fakeredis import FakeRedis

from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.pre_processor.waitlist_harness import FakeServices, WaitlistHarness, make_services
from worker.testing import FakeBackend


@pytest.fixture
def sender() -> RecordingPublisher:
    return RecordingPublisher()


@pytest.fixture
def services(redis: FakeRedis, sender: RecordingPublisher, tmp_path: Path) -> FakeServices:
    return make_services(redis, sender, tmp_path)


@pytest.fixture
def backend(services: FakeServices) -> FakeBackend:
    return services.backend_client


@pytest.fixture
def harness(services: FakeServices, sender: RecordingPublisher) -> WaitlistHarness:
    return WaitlistHarness(services, sender)
