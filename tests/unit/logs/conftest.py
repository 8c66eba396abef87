"""The log of a job on a Redis in memory: a run that writes it, and relays by an asynchronous client."""

from collections.abc import AsyncIterator, Iterator

import fakeredis
import pytest

from shared.messages import DeployMessage
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.logs.relay_harness import LogOfJob, RelayHarness
from worker.logs import relay, tailer
from worker.runs.runs import Runs, Timing


@pytest.fixture(autouse=True)
def short_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "POLL_INTERVAL_SECONDS", 0.02)
    monkeypatch.setattr(relay, "RENEW_INTERVAL_SECONDS", 0.05)
    monkeypatch.setattr(tailer, "MIN_BACKOFF_SECONDS", 0.01)


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
    # As the relay's own client, see `shared.redis_url`.
    client = fakeredis.FakeAsyncRedis(server=server, decode_responses=True, encoding_errors="surrogateescape")
    yield client
    await client.aclose()


@pytest.fixture
def runs(redis: fakeredis.FakeRedis) -> Runs:
    return Runs(redis, RecordingPublisher(), Timing(60))


@pytest.fixture
def live_runs(runs: Runs) -> Runs:
    """Runs, with a live one of job 42."""
    message = DeployMessage.model_validate({"job": 42, "plugin": "digits@1.0.0", "agent": 1})
    runs.store.accept(message, "deploy")
    return runs


@pytest.fixture
def job_log(redis: fakeredis.FakeRedis) -> LogOfJob:
    return LogOfJob(redis, "42")


@pytest.fixture
async def harness(async_redis: fakeredis.FakeAsyncRedis) -> AsyncIterator[RelayHarness]:
    harness = RelayHarness(async_redis)
    yield harness
    await harness.stop()
