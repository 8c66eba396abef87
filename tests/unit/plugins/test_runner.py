"""What runs in the processes of Ray."""

import subprocess
import sys

import pytest

HEAVY = ("httpx", "aiohttp", "redis", "celery", "pydantic_settings")


@pytest.mark.parametrize(
    "module", ["worker.plugins.runner", "worker.actions", "worker.plugins.ray_driver.operations"]
)
def test_a_process_of_ray_starts_without_the_libraries_of_the_worker(module: str) -> None:
    code = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.split() == []

