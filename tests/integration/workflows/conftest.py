"""One sandbox with a real Redis, Celery worker and Ray for all tests of the session."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.workflows.ray_harness import RayHarness
from worker.sandbox import Sandbox

PLUGINS = Path(__file__).parents[2] / "plugins"


@pytest.fixture(scope="session")
def harness() -> Iterator[RayHarness]:
    with Sandbox(plugins_dir=PLUGINS, num_cpus=4) as sandbox:
        yield RayHarness(sandbox, sandbox.start_worker())
