"""One platform for all of these tests; each test has its own jobs and projects."""

from collections.abc import Iterator

import pytest

from tests.integration.safety.site import Site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("safety"))
    try:
        site.start(
            WORKER_ANNOTATE_CONCURRENCY="4",
            WORKER_ANNOTATE_CHUNK="50",
            # A fuzzed message may be a good one that waits for what never comes.
            WORKER_PRE_PROCESSOR_TIMEOUT_SECONDS="8",
        )
        yield site
    finally:
        site.close()
