"""One whole platform for these tests: real Redis, Celery worker and Ray, the sandbox's backend and agent."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.workflows.platform import Platform
from worker.sandbox import Sandbox

PLUGINS = Path(__file__).parents[2] / "plugins"


@pytest.fixture(scope="session")
def platform() -> Iterator[Platform]:
    with Sandbox(plugins_dir=PLUGINS, num_cpus=4) as sandbox:
        worker = sandbox.start_worker()
        yield Platform(sandbox, worker)
