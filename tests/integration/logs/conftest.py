"""A real Redis and a fast log server."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.logs.log_relay_harness import LogRelayHarness


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[LogRelayHarness]:
    harness = LogRelayHarness(tmp_path)
    yield harness
    harness.close()
