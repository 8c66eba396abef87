"""One harness for each test, and one fork server for all tests of the session."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.forkserver import ForkServer
from tests.harness.brokers import session_broker
from tests.integration.broker.broker_harness import BrokerHarness

APP = "tests.integration.broker.recording_app"
PRELOADED = (
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.concurrency.thread",
    "worker.broker.consumer",
    "worker.workflow.dead_letters",
)


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    fork_server = ForkServer(tmp_path_factory.mktemp("fork_server"), app=APP, preloaded=PRELOADED)
    try:
        yield fork_server
    finally:
        fork_server.close()


@pytest.fixture
def broker(tmp_path: Path, fork_server: ForkServer) -> Iterator[BrokerHarness]:
    if session_broker.is_rabbitmq:
        pytest.skip("about queues in Redis: the transport itself")
    broker = BrokerHarness(tmp_path, fork_server)
    try:
        yield broker
    finally:
        broker.close()
