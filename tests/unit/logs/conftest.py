"""A job's log in memory: the run's side, and a relay's by its asynchronous client."""

from collections.abc import AsyncIterator, Iterator

import fakeredis
import pytest

from shared.messages import DeployMessage
from tests.unit.logs.logs_helpers import Log, Logs
from tests.unit.runs.runs_helpers import RecordingSender
from worker.runs.runs import Runs, Timing


@pytest.fixture
def server() -> fakeredis.FakeServer:
    return fakeredis.FakeServer()


@pytest.fixture
def redis(server: fakeredis.FakeServer) -> Iterator[fakeredis.FakeRedis]:
    client = fakeredis.FakeRedis(server=server, decode_responses=True)
    yield client
    client.close()


@pytest.fixture
async def async_redis(server: fakeredis.FakeServer) -> AsyncIterator[fakeredis.FakeAsyncRedis]:
    client = fakeredis.FakeAsyncRedis(server=server, decode_responses=True)
    yield client
    await client.aclose()


@pytest.fixture
def runs(redis: fakeredis.FakeRedis) -> Runs:
    return Runs(redis, RecordingSender(), Timing(60))


@pytest.fixture
def run(runs: Runs) -> Runs:
    """The runs, of which job 42 has one."""
    message = DeployMessage.model_validate({"job": 42, "plugin": "digits@1.0.0", "agent": 1})
    runs.store.accept(message, "deploy")
    return runs


@pytest.fixture
def log(redis: fakeredis.FakeRedis) -> Log:
    return Log(redis, "42")


@pytest.fixture
async def logs(async_redis: fakeredis.FakeAsyncRedis) -> AsyncIterator[Logs]:
    logs = Logs(async_redis)
    yield logs
    await logs.stop()
