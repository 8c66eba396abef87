"""What every unit test may use: a Redis in memory and its clock; connections to other machines fail."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import fakeredis
import hypothesis
import pytest

from shared.redis_connections import PacksWhatItReads
from tests.harness.pool_threads import NewThread, PoolThread
from tests.harness.recorded_spans import RecordedSpans, recorded_spans
from worker.runs.bulkhead import Bulkhead

# A busy machine is slow, and a gate is the same each time.
hypothesis.settings.register_profile(
    "gate", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("gate")

LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections leave for this machine only."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guard(original: Callable[..., Any]) -> Callable[..., Any]:
        def checked(self: socket.socket, address: Any) -> Any:
            if self.family != socket.AF_UNIX and not str(address[0]).startswith(LOOPBACK):
                raise AssertionError(f"a unit test wants to reach {address!r}")
            return original(self, address)

        return checked

    monkeypatch.setattr(socket.socket, "connect", guard(connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guard(connect_ex))


@pytest.fixture(autouse=True)
def no_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Countdowns are what they are without chance."""
    monkeypatch.setattr("worker.runs.bulkhead.MIN_JITTER", 1.0)


class Clock:
    """Redis's clock; `forward` lets time pass without waiting."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def forward(self, seconds: float) -> None:
        self.ahead += seconds

    def time(self) -> float:
        return time.time() + self.ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("fakeredis.commands_mixins.server_mixin.time", clock)
    monkeypatch.setattr("fakeredis._socket._base.time", clock)
    return clock


class FakeConnection(PacksWhatItReads, fakeredis._clients._sync.FakeRedisConnection):
    """Sends what it has read, as the worker's own connections do."""


@pytest.fixture
def redis() -> Iterator[fakeredis.FakeRedis]:
    # As the worker's own client, see `shared.redis_url`.
    client = fakeredis.FakeRedis(
        server=fakeredis.FakeServer(),
        connection_class=FakeConnection,
        decode_responses=True,
        encoding_errors="surrogateescape",
    )
    yield client
    client.close()


@pytest.fixture
def spans() -> Iterator[RecordedSpans]:
    """Spans are recorded, and kept in memory."""
    with recorded_spans() as spans:
        yield spans


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait for a condition, a minute at most: the bound on a hang, not on a slow machine."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, "the condition did not hold in time"
            time.sleep(0.01)

    return wait


@pytest.fixture
def new_thread() -> Iterator[NewThread]:
    """Makes threads of a pool, which hold slots until the end of the test."""
    with ExitStack() as stack:

        def make(bulkhead: Bulkhead) -> PoolThread:
            thread = PoolThread(bulkhead)
            stack.callback(thread.close)
            return thread

        yield make
