"""One ground for all tests; each brings up its own workers."""

from collections.abc import Iterator

import pytest

from tests.chaos.ground import Ground


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    ground = Ground(tmp_path_factory.mktemp("ground"))
    try:
        yield ground
    finally:
        ground.close()
