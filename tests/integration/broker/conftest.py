"""One Redis with its workers a test; one fork_server for all of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.forkserver import ForkServer
from tests.integration.broker.broker_site import Site

TINY_APP = "tests.integration.broker.tiny_app"
PRELOADED = (
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.concurrency.thread",
    "worker.broker.consumer",
    "worker.workflow.dead_letters",
)


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    fork_server = ForkServer(tmp_path_factory.mktemp("fork_server"), app=TINY_APP, preloaded=PRELOADED)
    try:
        yield fork_server
    finally:
        fork_server.close()


@pytest.fixture
def site(tmp_path: Path, fork_server: ForkServer) -> Iterator[Site]:
    site = Site(tmp_path, fork_server)
    try:
        yield site
    finally:
        site.close()
