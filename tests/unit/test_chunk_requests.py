"""A process takes another chunk while requests of it would be sent at once."""

from concurrent.futures import ThreadPoolExecutor

from worker.chunk_requests import FIRST_REQUESTS, ChunkRequests


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


def test_chunks_count_with_requests_before_they_begin() -> None:
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
