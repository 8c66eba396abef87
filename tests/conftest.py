"""Which tests share a process where `make test` runs them in two (`pytest -n 2 --dist loadfile`).

A file's tests stay together and in their order, and so do the files that share a harness of the session.
All that start a Ray are one group: two of them beside each other are slower than one after the other.

With `--broker=rabbitmq` workers have their queues in a RabbitMQ (`make test-rabbitmq`).
"""

import sys
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

HERE = Path(__file__).parent
ROOT = HERE.parent
RAY, CHAOS = "Ray", "chaos"
RABBITMQ = "rabbitmq"
GROUPS = {
    "integration/cli/test_demo.py": RAY,
    "integration/cli/test_sandbox.py": RAY,
    "integration/deployment/test_services.py": RAY,
    "integration/logs/test_log_relay_on_ray.py": RAY,
    "integration/monitoring/test_traces_to_serve.py": RAY,
    "integration/plugins": RAY,
    "integration/ray_client": RAY,
    "integration/sandbox/test_with_ray.py": RAY,
    "integration/workflows": RAY,
    "chaos/test_ray.py": RAY,
    "chaos/test_ray_from_elsewhere.py": RAY,
    "chaos": CHAOS,
    "integration/safety": "safety",
    "integration/console": "console",
}
"""By file or folder; the first that fits. Every other file is a group of its own."""
FIRST = (RAY, CHAOS)
"""These take longest: whatever is short comes last, so that both processes end together."""


def group_of(path: Path) -> str:
    """The group of a file's tests."""
    name = path.relative_to(HERE).as_posix()
    return next((group for start, group in GROUPS.items() if f"{name}/".startswith(f"{start}/")), name)


class GroupScheduling(LoadFileScheduling):
    """xdist's scheduling by file, with our groups: its own (`loadgroup`) has no effect with pytest 9.2."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(ROOT / super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> GroupScheduling | None:
    return GroupScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_addoption(parser: pytest.Parser) -> None:
    brokers = ("redis", RABBITMQ)
    parser.addoption("--broker", choices=brokers, default=brokers[0], help="where workers have their queues")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--broker") == RABBITMQ:
        # Imported here and below because it takes seconds, and unit tests need none of it.
        from tests.harness.brokers import session_broker

        session_broker.is_rabbitmq = True


def pytest_unconfigure() -> None:
    if brokers := sys.modules.get("tests.harness.brokers"):
        brokers.session_broker.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    order = {group: number for number, group in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(group_of(item.path), len(order)))
    if config.getoption("--broker") != RABBITMQ:
        return
    from tests.harness.rabbitmq import IS_MISSING, MISSING

    for item in items:
        marker = item.get_closest_marker("redis_queues")
        if IS_MISSING:
            item.add_marker(pytest.mark.skip(reason=MISSING))
        elif marker is not None:
            item.add_marker(pytest.mark.skip(reason=f"about queues in Redis: {marker.args[0]}"))
