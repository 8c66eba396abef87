"""What a worker's process does once it is up."""

import gc
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from celery import signals

from worker.pool import FIRST_REQUESTS, GARBAGE_COLLECTION_THRESHOLDS, ChunkRequests


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


class Chunks:
    """Chunks of a process with 64 requests, and how often somebody who waited for one was called."""

    def __init__(self, most: int = 64) -> None:
        self.requests = ChunkRequests()
        self.requests.most = most
        self.counts: list[int] = []
        self.called = 0
        self._threads: list[ThreadPoolExecutor] = []

    def begin(self, count: int) -> None:
        """A chunk in a thread of its own sends so many requests."""
        number = len(self.counts)
        self.counts.append(count)
        self._threads.append(ThreadPoolExecutor(1))
        self._threads[-1].submit(self.requests.begin, lambda: self.counts[number]).result()

    def answer(self, number: int, left: int) -> None:
        """So many requests of this chunk are left."""
        self.counts[number] = left
        self.requests.have_changed()

    def have_free(self, held: int) -> bool:
        """Whether another chunk finds some beside so many messages."""
        return self.requests.have_free(held, self._call)

    def _call(self) -> None:
        self.called += 1


def test_a_chunk_is_taken_until_all_requests_are_used() -> None:
    chunks = Chunks()
    assert chunks.have_free(0)
    chunks.begin(63)
    assert chunks.have_free(1)

    chunks.begin(1)

    assert not chunks.have_free(2)


def test_chunks_that_have_not_begun_count_with_their_first_requests() -> None:
    chunks = Chunks(2 * FIRST_REQUESTS)

    assert [chunks.have_free(held) for held in (1, 2)] == [True, False]


def test_who_waits_is_called_once_when_requests_are_free() -> None:
    # Given two chunks that use all requests, and somebody who waits
    chunks = Chunks()
    chunks.begin(40)
    chunks.begin(40)
    assert not chunks.have_free(2)

    # When one of them needs less and less
    chunks.answer(0, 24)
    assert chunks.called == 0
    chunks.answer(0, 23)
    chunks.answer(0, 0)

    assert chunks.called == 1


def test_a_chunk_that_begins_with_less_leaves_the_rest() -> None:
    chunks = Chunks()
    assert not chunks.have_free(2)

    chunks.begin(3)

    assert chunks.called == 1


def test_a_chunk_that_ends_is_not_counted_any_more() -> None:
    requests = ChunkRequests()
    requests.most = 64
    requests.begin(lambda: 64)
    assert not requests.have_free(1, lambda: None)

    requests.end()

    assert requests.have_free(0, lambda: None)


def test_a_process_that_annotates_nothing_have_free() -> None:
    assert Chunks(0).have_free(100)
