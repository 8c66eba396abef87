"""One harness for all tests of the session; each test has its own jobs and projects."""

from collections.abc import Iterator

import pytest

from tests.integration.safety.proxied_harness import ProxiedHarness


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedHarness]:
    harness = ProxiedHarness(tmp_path_factory.mktemp("safety"))
    try:
        harness.start(
            WORKER_ANNOTATE_CONCURRENCY="4",
            WORKER_ANNOTATE_CHUNK="50",
            # A fuzzed message may be valid, and then wait for a pre-processor that does not exist.
            WORKER_PRE_PROCESSOR_TIMEOUT_SECONDS="8",
        )
        yield harness
    finally:
        harness.close()
