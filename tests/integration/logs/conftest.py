"""A real Redis and a fast log server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.logs.log_site import LogSite


@pytest.fixture
def site(tmp_path: Path) -> Iterator[LogSite]:
    site = LogSite(tmp_path)
    yield site
    site.close()
