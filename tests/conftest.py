"""How `pytest -n` spreads tests over its processes: a file stays whole, and Ray is all in one process."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent
RAY = (
    "integration/cli/test_demo.py",
    "integration/cli/test_ray_check.py",
    "integration/logs/test_log_relay_on_ray.py",
    "integration/plugins",
    "integration/ray_client",
    "integration/sandbox/test_with_ray.py",
    "integration/workflows",
)
"""Files and folders whose tests start Ray clusters: two at a time would be too much for two cores."""


# First, because the plugin that reads the groups does so in this hook.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group integration and chaos tests; the largest group, Ray's, is begun first."""
    for item in items:
        path = item.path.relative_to(ROOT).as_posix()
        if not path.startswith("unit/"):
            item.add_marker(pytest.mark.xdist_group("ray" if path.startswith(RAY) else path))
    items.sort(key=lambda item: not item.path.relative_to(ROOT).as_posix().startswith(RAY))
