"""One harness for all tests of the session; each test starts workers of its own."""

from collections.abc import Iterator

import pytest

from tests.chaos.platform_harness import PlatformHarness


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlatformHarness]:
    harness = PlatformHarness(tmp_path_factory.mktemp("harness"))
    try:
        yield harness
    finally:
        harness.close()
