"""A run on a Redis in memory, a worker that delivers its messages, and a backend."""

import pytest
from fakeredis import FakeRedis

from shared.messages import DeployMessage, ToTaskMessage
from tests.harness.in_process_worker import InProcessWorker, RecordingPublisher, RecordingReports
from tests.unit.runs.example_workflow import VISIBILITY_TIMEOUT
from worker.runs.model import StoredRun
from worker.runs.runs import Runs, Timing
from worker.testing import FakeBackend


@pytest.fixture
def publisher() -> RecordingPublisher:
    return RecordingPublisher()


@pytest.fixture
def reports() -> RecordingReports:
    return RecordingReports()


@pytest.fixture
def runs(redis: FakeRedis, publisher: RecordingPublisher, reports: RecordingReports) -> Runs:
    return Runs(redis, publisher, Timing(VISIBILITY_TIMEOUT), reports)


@pytest.fixture
def worker(runs: Runs) -> InProcessWorker:
    return InProcessWorker(runs)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def deploy() -> DeployMessage:
    return DeployMessage.model_validate({"job": 42, "plugin": "digits@1.0.0", "agent": 1})


@pytest.fixture
def to_task() -> ToTaskMessage:
    params = {"name": "n", "project": 1, "agent": 1, "target_specification_name": "s"}
    return ToTaskMessage.model_validate({"job": 42, "plugin": "digits@1.0.0", "params": params})


@pytest.fixture
def run(runs: Runs, deploy: DeployMessage) -> StoredRun:
    """An accepted run."""
    runs.store.accept(deploy, "deploy")
    return runs.store.load("42")
