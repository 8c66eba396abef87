"""Runs in memory, and what hears of their changes."""

import fakeredis
import pytest

from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.runs.example_workflow import VISIBILITY_TIMEOUT
from worker.runs.runs import Runs, Timing


@pytest.fixture
def runs(redis: fakeredis.FakeRedis) -> Runs:
    return Runs(redis, RecordingPublisher(), Timing(VISIBILITY_TIMEOUT))


@pytest.fixture
def subscriber(redis: fakeredis.FakeRedis) -> fakeredis.FakeAsyncRedis:
    return fakeredis.FakeAsyncRedis(
        server=redis.connection_pool.connection_kwargs["server"], decode_responses=True
    )
