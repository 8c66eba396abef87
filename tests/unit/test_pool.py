"""What a worker's process does once it is up."""

import gc
import weakref
from collections.abc import Iterator

import pytest
from celery import signals

from worker.pool import GARBAGE_COLLECTION_THRESHOLDS


@pytest.fixture
def _collector() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


@pytest.mark.usefixtures("_collector")
@pytest.mark.parametrize("signal", [signals.worker_ready, signals.worker_process_init])
def test_what_was_loaded_is_not_collected_any_more(signal: signals.Signal) -> None:
    gc.unfreeze()

    signal.send(sender=None)

    assert gc.get_freeze_count() > 10_000
    assert gc.get_threshold() == GARBAGE_COLLECTION_THRESHOLDS


class _Connection:
    """Refers to itself, as a connection and its channels refer to each other."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.usefixtures("_collector")
def test_what_a_lost_connection_leaves_is_collected() -> None:
    # Given a worker whose connection was lost after it was ready
    connection = _Connection()
    signals.worker_ready.send(sender=None)
    is_there = weakref.ref(connection)
    del connection

    # When it is ready with another one
    signals.worker_ready.send(sender=None)

    # Then nothing of the first one is left
    assert is_there() is None
