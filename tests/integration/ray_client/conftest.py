"""A sandbox with a real Ray; the jobs are submitted together, because Ray takes seconds to start each."""

from collections.abc import Iterator

import pytest

from tests.integration.ray_client.jobs import JOBS, Cluster
from worker.sandbox import Sandbox


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Sandbox(plugins_dir=tmp_path_factory.mktemp("plugins"), num_cpus=3) as sandbox:
        cluster = Cluster(sandbox, tmp_path_factory.mktemp("scripts"))
        for name in JOBS:
            cluster.submit(name)
        yield cluster
