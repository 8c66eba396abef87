"""What a worker's process does once it is up."""

import gc
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
