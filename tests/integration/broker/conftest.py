"""One Redis with its workers a test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.broker.broker_site import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        yield site
    finally:
        site.close()
