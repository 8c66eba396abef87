"""One Redis with its workers a test; one nursery for all of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.nursery import Nursery
from tests.integration.broker.broker_site import Site

TINY_APP = "tests.integration.broker.tiny_app"
LOADED = (
    "celery.apps.worker",
    "celery.bin.celery",
    "celery.concurrency.thread",
    "worker.broker.consumer",
    "worker.workflow.dead_letters",
)


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    nursery = Nursery(tmp_path_factory.mktemp("nursery"), app=TINY_APP, loaded=LOADED)
    try:
        yield nursery
    finally:
        nursery.close()


@pytest.fixture
def site(tmp_path: Path, nursery: Nursery) -> Iterator[Site]:
    site = Site(tmp_path, nursery)
    try:
        yield site
    finally:
        site.close()
