"""A run on a Redis in memory, its messages recorded."""

import pytest
from fakeredis import FakeRedis

from shared.messages import DeployMessage, ToTaskMessage
from tests.unit.runs.runs_helpers import VISIBILITY_TIMEOUT, Courier, RecordingSender
from worker.runs.model import Run
from worker.runs.runs import Runs, Timing


@pytest.fixture
def sender() -> RecordingSender:
    return RecordingSender()


@pytest.fixture
def runs(redis: FakeRedis, sender: RecordingSender) -> Runs:
    return Runs(redis, sender, Timing(VISIBILITY_TIMEOUT))


@pytest.fixture
def courier(runs: Runs) -> Courier:
    return Courier(runs)


@pytest.fixture
def deploy() -> DeployMessage:
    return DeployMessage.model_validate({"job": 42, "plugin": "digits@1.0.0", "agent": 1})


@pytest.fixture
def to_task() -> ToTaskMessage:
    params = {"name": "n", "project": 1, "agent": 1, "target_specification_name": "s"}
    return ToTaskMessage.model_validate({"job": 42, "plugin": "digits@1.0.0", "params": params})


@pytest.fixture
def run(runs: Runs, deploy: DeployMessage) -> Run:
    """An accepted run."""
    runs.store.accept(deploy, "deploy")
    return runs.store.load("42")
