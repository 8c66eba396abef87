"""Commands on a Redis in memory, and the runs and logs that they show."""

import fakeredis
import pytest
from fakeredis import FakeRedis

from shared.messages import DeployMessage
from shared.statuses import JobStatus
from tests.harness.in_process_worker import RecordingPublisher
from tests.unit.cli.command_line import RAY_JOB, CommandLine
from tests.unit.logs.relay_harness import LogOfJob
from worker.runs.model import End
from worker.runs.runs import Runs, Timing


@pytest.fixture
def cli(redis: FakeRedis, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    cli = CommandLine(redis)
    monkeypatch.setattr("shared.redis_url.RedisUrl.client", lambda *_, **__: redis)
    monkeypatch.setattr("shared.Publisher.publish", cli.publish)
    return cli


@pytest.fixture
def redis_server(monkeypatch: pytest.MonkeyPatch) -> fakeredis.FakeServer:
    """A Redis in memory that every command connects to."""
    server = fakeredis.FakeServer()
    for module in ("follow", "runs", "dead_letters"):
        monkeypatch.setattr(
            f"worker.cli.{module}.connect",
            lambda _url: fakeredis.FakeRedis(server=server, decode_responses=True),
        )
    return server


@pytest.fixture
def live_runs(redis: FakeRedis) -> Runs:
    """Runs, with a live one of job 42."""
    runs = Runs(redis, RecordingPublisher(), Timing(60))
    message = DeployMessage.model_validate({"job": 42, "plugin": "digits@1.0.0", "agent": 1})
    runs.store.accept(message, "deploy")
    return runs


@pytest.fixture
def ended_run_with_log(live_runs: Runs, redis: FakeRedis) -> Runs:
    """An ended run, and the relayed log of a Ray job in its log."""
    job_log = LogOfJob(redis, "42")
    job_log.subscribe(RAY_JOB)
    job_log.claim(RAY_JOB, "1")
    live_runs.events.message("42", "hello")
    job_log.append(RAY_JOB, "1", 0, "\x1b[31m빨강\x1b[0m", "10 %\r20 %")
    job_log.close(RAY_JOB, "1")
    live_runs.set_progress(live_runs.store.load("42"), "deploy", 50)
    live_runs.finish("42", End(JobStatus.SUCCEEDED, {}))
    return live_runs
