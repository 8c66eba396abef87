"""One sandbox with a real Redis, Celery worker and Ray for all tests of the session."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.brokers import session_broker
from tests.integration.workflows.ray_harness import (
    CONCURRENCY,
    EXAMPLES,
    RayHarness,
    write_decorated_release,
    write_hanging_release,
    write_new_releases,
    write_whole_release,
)
from worker.sandbox import Sandbox

PLUGINS = Path(__file__).parents[2] / "plugins"


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin store of the sandbox, whose releases a test may change."""
    plugins = tmp_path_factory.mktemp("store") / "plugins"
    shutil.copytree(PLUGINS, plugins)
    shutil.copytree(EXAMPLES, plugins, dirs_exist_ok=True)
    return plugins


@pytest.fixture(scope="session")
def harness(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Iterator[RayHarness]:
    calls, plugins = tmp_path_factory.mktemp("calls"), store
    write_decorated_release(plugins)
    write_new_releases(plugins)
    write_whole_release(plugins)
    write_hanging_release(plugins, calls, "hangs")
    write_hanging_release(plugins, calls, "hangs_at_load", 'hang("load")')
    with Sandbox(plugins_dir=plugins, num_cpus=4, broker_url=session_broker.new_url()) as sandbox:
        yield RayHarness(sandbox, sandbox.start_worker(concurrency=CONCURRENCY), calls)
