"""Collecting ids: pages count once, chunks are whole, nothing is annotated before the last page."""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.to_task.world import JOB, World
from worker.platform import NotFoundError
from worker.runs.keys import messages_key
from worker.runs.model import ContinueInParts, Finish, Reschedule, RunFailedError, Suspend
from worker.testing import FakeBackend
from worker.to_task import ledger
from worker.to_task.discover import (
    MAX_REPEATED_PAGES,
    Listing,
    Page,
    PageCommit,
    TaskIndex,
    iter_task_ids,
    page_size,
    read_page,
)

Make = Callable[..., World]


def page(*ids: Any, following: int | None = None, **other: Any) -> dict[str, Any]:
    link = None if following is None else f"http://backend/sdk/tasks/?page={following}"
    return {"next": link, "results": [{"id": each} for each in ids], **other}


def chunks(world: World) -> dict[str, str]:
    found: dict[str, str] = world.redis.hgetall(ledger.chunks_key(JOB))
    return found


def test_ids_are_cut_into_chunks_across_pages(make_world: Make) -> None:
    # Given 7 tasks on pages of 2, and chunks of 3
    world = make_world(7, chunk=3)
    world.backend.page_size = 2

    # When they are collected
    assert isinstance(world.fetch(), ContinueInParts)

    # Then each chunk is whole but the last, and the total is public
    assert chunks(world) == {"0": "1,2,3", "1": "4,5,6", "2": "7"}
    assert world.record()["total"] == "7"


def test_a_pre_processor_that_takes_many_gets_larger_chunks(by_inference: Make) -> None:
    # Given 70 tasks, chunks of 3, and a pre-processor that takes two inferences at once
    world = by_inference(70, chunk=3, batch=2)

    # When they are collected
    world.fetch()

    # Then a chunk has 16 tasks for each of the two
    assert [len(ids.split(",")) for _, ids in sorted(chunks(world).items())] == [32, 32, 6]


def test_chunks_by_inference_have_a_limit(by_inference: Make) -> None:
    world = by_inference(1_500, chunk=3, batch=900)

    world.fetch()

    assert [len(ids.split(",")) for _, ids in sorted(chunks(world).items())] == [1_000, 500]


def test_a_project_without_tasks_fails(make_world: Make) -> None:
    end = make_world(0).fetch()

    assert isinstance(end, Finish)
    assert (end.status, end.result) == ("FAILED", {"error": "No tasks found to annotate"})


def test_an_id_on_two_pages_is_one_task(make_world: Make) -> None:
    world = make_world(chunk=3)
    world.backend.pages = [page(1, 2, 2, following=1), page(2, 3, 4)]

    world.fetch()

    assert chunks(world) == {"0": "1,2,3", "1": "4"}
    assert world.record()["total"] == "4"


def test_what_dedupes_is_gone_after_the_last_page(make_world: Make) -> None:
    world = make_world(30)
    world.fetch()

    assert not world.redis.exists(ledger.seen_key(JOB))


def test_a_page_that_is_committed_twice_counts_once(make_world: Make) -> None:
    world = make_world()
    index = TaskIndex(world.redis, JOB, 2)
    first = Page([1, 2, 3], "http://backend/?page=1", None)

    assert index.commit(0, first) is PageCommit.COMMITTED
    assert index.commit(0, first) is PageCommit.STALE

    assert (index.cursor().page, index.cursor().total) == (1, 3)
    assert chunks(world) == {"0": "1,2"}


def test_an_old_delivery_changes_nothing_after_the_last_page(make_world: Make) -> None:
    world = make_world(5)
    world.fetch()
    before = chunks(world)

    commit = TaskIndex(world.redis, JOB, 10).commit(0, Page([77], None, None))

    assert commit is PageCommit.STALE
    assert chunks(world) == before


def test_a_second_delivery_after_the_last_page_reads_nothing(make_world: Make) -> None:
    # Given a worker that died after it had read the last page
    world = make_world(5)
    world.fetch_pages(world.run)
    before = world.backend.faults.calls["list_tasks"]

    assert isinstance(world.fetch(), ContinueInParts)
    assert world.backend.faults.calls["list_tasks"] == before


def test_a_delivery_reads_for_a_while_and_the_next_goes_on(make_world: Make) -> None:
    # Given three pages, and a clock that is past the budget after each
    world = make_world(30)
    world.backend.page_size = 10
    ticks = iter(range(0, 10_000, 100))

    # When the step is delivered until it is done
    outcomes = [world.fetch_pages(world.run, lambda: float(next(ticks))) for _ in range(3)]

    # Then each delivery read one page
    assert outcomes[:2] == [Reschedule(0), Reschedule(0)]
    assert isinstance(outcomes[2], ContinueInParts)
    assert world.backend.faults.calls["list_tasks"] == 3
    assert world.record()["total"] == "30"


def test_a_chunk_size_that_changes_on_the_way_changes_nothing(make_world: Make) -> None:
    world = make_world()
    TaskIndex(world.redis, JOB, 2).commit(0, Page([1, 2, 3], "http://backend/?page=1", None))

    TaskIndex(world.redis, JOB, 100).commit(1, Page([4, 5], None, None))

    assert chunks(world) == {"0": "1,2", "1": "3,4", "2": "5"}


def test_nothing_is_written_after_the_end_of_the_run(make_world: Make) -> None:
    world = make_world(5)
    world.end()

    assert world.fetch_pages(world.run) == Suspend()
    assert chunks(world) == {}


@pytest.mark.parametrize("bad", ["7", None, 1.5, True, -1, 0])
def test_a_list_without_any_usable_id_ends_the_run(make_world: Make, bad: object) -> None:
    world = make_world()
    world.backend.pages = [page(bad)]

    with pytest.raises(
        RunFailedError, match="list of tasks is malformed: the id of a task is no positive integer"
    ):
        world.fetch()


def test_a_record_without_an_id_does_not_fail_the_others(make_world: Make) -> None:
    # Given a list of five records, two of which have no id that a task can have
    world = make_world()
    world.backend.pages = [page(1, None, 3, following=1) | {"count": 5}, page("x", 5) | {"count": 5}]

    world.fetch()

    # Then the others are annotated, the pages are read once, and the run says what was left out
    assert chunks(world) == {"0": "1,3,5"}
    assert world.backend.faults.calls["list_tasks"] == 2
    assert messages(world) == ["2 records of the list were left out: their id is no positive integer"]


@pytest.mark.parametrize("answer", [{"results": None}, {"results": [7]}, {"results": [], "next": 7}])
def test_a_list_that_is_none_ends_the_run(make_world: Make, answer: dict[str, Any]) -> None:
    world = make_world()
    world.backend.pages = [answer]

    with pytest.raises(RunFailedError, match="list of tasks is malformed"):
        world.fetch()


def test_pages_that_go_around_in_a_circle_end_the_run(make_world: Make) -> None:
    world = make_world()
    world.backend.pages = [page(1, following=1), page(2, following=0)]

    with pytest.raises(RunFailedError, match="go around in a circle"):
        world.fetch()


def test_a_direct_call_notices_the_circle_too(make_world: Make) -> None:
    world = make_world()
    world.backend.pages = [page(1, following=1), page(2, following=0)]

    with pytest.raises(RunFailedError, match="go around in a circle"):
        list(iter_task_ids(world.backend, world.run.message.params, 100))


def endless(*ids: int) -> list[dict[str, Any]]:
    """Pages of the same ids, each with a link to yet another one."""
    return [page(*ids, following=number + 1) for number in range(MAX_REPEATED_PAGES + 5)]


@pytest.mark.parametrize("ids", [(1, 2), ()], ids=["known ids", "no ids"])
def test_pages_that_bring_nothing_new_end_the_run(make_world: Make, ids: tuple[int, ...]) -> None:
    world = make_world()
    world.backend.pages = endless(*ids)

    with pytest.raises(RunFailedError, match=f"{MAX_REPEATED_PAGES} pages in a row have no new task"):
        world.fetch()


@pytest.mark.parametrize("ids", [(1, 2), ()], ids=["known ids", "no ids"])
def test_a_direct_call_notices_that_nothing_is_new(make_world: Make, ids: tuple[int, ...]) -> None:
    world = make_world()
    world.backend.pages = endless(*ids)

    with pytest.raises(RunFailedError, match=f"{MAX_REPEATED_PAGES} pages in a row have no new task"):
        list(iter_task_ids(world.backend, world.run.message.params, 100))


def test_pages_shifted_onto_known_ones_are_read_on(make_world: Make) -> None:
    world = make_world()
    shifted = [page(1, 2, following=number + 1) for number in range(MAX_REPEATED_PAGES - 1)]
    world.backend.pages = [*shifted, page(3)]

    assert list(iter_task_ids(world.backend, world.run.message.params, 100)) == [1, 2, 3]


def test_a_direct_call_meets_each_id_once(make_world: Make) -> None:
    world = make_world()
    world.backend.pages = [page(1, 2, following=1), page(2, 3)]

    assert list(iter_task_ids(world.backend, world.run.message.params, 100)) == [1, 2, 3]


def test_progress_follows_the_count_of_the_backend(make_world: Make) -> None:
    world = make_world()
    world.backend.pages = [page(1, following=1, count=4), page(2, 3, 4, count=4)]
    ticks = iter([0.0, 100.0])

    world.fetch_pages(world.run, lambda: next(ticks))

    assert world.redis.hget(f"synapse:jobs:{{{JOB}}}:progress", "fetch_tasks") == "25"


@pytest.mark.parametrize("count", [10**400, -5, True, 1.5, "many", float("inf"), None])
def test_a_count_beyond_reckoning_is_not_known(count: object) -> None:
    backend: Any = SimpleNamespace(
        list_tasks=lambda *_, **__: {"results": [{"id": 1}], "next": None, "count": count}
    )
    params: Any = SimpleNamespace(task_filters={}, project=1)

    assert read_page(backend, params, 100, None) == Page([1], None, None)


def test_large_ids_survive(make_world: Make) -> None:
    world = make_world()
    world.backend.pages = [page(2**62 + 1)]

    world.fetch()
    assert [task.task_id for task in world.ledger.open_tasks(0)] == [2**62 + 1]


def test_pages_are_large_but_no_larger_than_a_thousand() -> None:
    assert [page_size(chunk) for chunk in (1, 20, 100, 10_000)] == [100, 200, 1000, 1000]


def test_the_keys_expire_with_the_run(make_world: Make) -> None:
    world = make_world(25, chunk=10)
    world.collect()
    world.annotate(0)
    world.end()

    world.runs.store.mark_reported(JOB)

    assert [key for key in world.redis.keys("*to_task*") if world.redis.ttl(key) < 0] == []


class ShrinkingBackend(FakeBackend):
    """Has tasks deleted before its second page is asked for, the first time."""

    def __init__(self, tasks: int, deleted: list[int]) -> None:
        super().__init__(tasks=range(1, tasks + 1))
        self.page_size = 100
        self._deleted = deleted

    def list_tasks(
        self, filters: Any, project: int, page_size: int = 100, url: str | None = None
    ) -> dict[str, Any]:
        if url is not None:
            self.tasks = [task for task in self.tasks if task not in self._deleted]
            start = 100 * int(url.rpartition("=")[2])
            if start >= len(self.tasks):
                raise NotFoundError("404 Not Found: Invalid page.", 404, "Invalid page.")
        return super().list_tasks(filters, project, page_size, url)


def listed(world: World) -> list[int]:
    return sorted(int(task) for chunk in chunks(world).values() for task in chunk.split(","))


def messages(world: World) -> list[str]:
    return [json.loads(entry)["data"]["content"] for entry in world.redis.lrange(messages_key(JOB), 0, -1)]


@pytest.mark.parametrize(
    ("tasks", "deleted"),
    [(101, [1, 2]), (450, [1, 2, 3, 4, 5]), (200, list(range(101, 201)))],
    ids=["the last page is gone", "tasks shift onto a page that was read", "a whole page is gone"],
)
def test_tasks_deleted_while_pages_are_read_hide_no_other(
    make_world: Make, tasks: int, deleted: list[int]
) -> None:
    # Given tasks that are deleted between two pages
    world = make_world()
    world.backend = ShrinkingBackend(tasks, deleted)

    # When the ids are collected, by a run and by a direct call
    assert isinstance(world.fetch(), ContinueInParts)
    direct = ShrinkingBackend(tasks, deleted)
    warnings: list[str] = []
    ids = list(iter_task_ids(direct, world.run.message.params, 100, warnings.append))

    # Then all that are left are among them, and nobody is warned
    left = set(range(1, tasks + 1)) - set(deleted)
    assert left <= set(listed(world))
    assert left <= set(ids)
    assert messages(world) == warnings == []


def test_a_first_page_that_is_not_found_is_an_error(make_world: Make) -> None:
    world = make_world()
    world.backend.faults.fail("list_tasks", NotFoundError())

    with pytest.raises(NotFoundError):
        world.fetch()


def test_a_count_that_never_fits_is_warned_of(make_world: Make) -> None:
    # Given a backend whose count is larger than its pages
    world = make_world()
    world.backend.pages = [page(1, 2, following=1, count=5), page(3, count=5)]

    # When the ids are collected and the run has ended
    assert isinstance(world.fetch(), ContinueInParts)

    # Then they were listed twice, which brought no more, and log and result say so
    assert world.backend.faults.calls["list_tasks"] == 4
    assert listed(world) == [1, 2, 3]
    assert messages(world) == ["3 of 5 tasks were listed"]
    assert world.annotate_published().result["message"].endswith("; 3 of 5 tasks were listed")


def test_tasks_that_come_all_the_time_are_warned_of(make_world: Make) -> None:
    # Given a backend that has one more task at each look, before all others
    world = make_world()
    known: list[int] = []

    def list_tasks(*_: Any, url: str | None, **__: Any) -> dict[str, Any]:
        known.insert(0, len(known) + 1)
        shown = known[:1] if url is None else known[1:]
        return page(*shown, following=1 if url is None else None, count=len(known))

    backend: Any = SimpleNamespace(list_tasks=list_tasks)
    warnings: list[str] = []

    # When they are listed
    ids = list(iter_task_ids(backend, world.run.message.params, 100, warnings.append))

    # Then that is tried three times
    assert (sorted(ids), len(known)) == ([1, 2, 3, 4, 5], 6)
    assert warnings == ["5 of 6 tasks were listed"]


def test_a_listing_goes_on_in_another_delivery(make_world: Make) -> None:
    world = make_world()
    world.backend = ShrinkingBackend(450, [1, 2, 3])
    ticks = iter(range(0, 100_000, 100))

    outcomes = [world.fetch_pages(world.run, lambda: float(next(ticks))) for _ in range(10)]

    assert outcomes[:9] == [Reschedule(0)] * 9
    assert isinstance(outcomes[9], ContinueInParts)
    assert listed(world) == list(range(1, 451))


def test_a_listing_whose_count_changed_may_miss_some() -> None:
    listing = Listing().after(Page([1, 2], "http://h/?page=1", 4)).after(Page([3], None, 3))

    assert not listing.fits
    assert listing.warning(3) == "3 of 4 tasks were listed"
    assert listing.warning(4) == "4 tasks were listed while others came or went: some may be missing"
    assert Listing.from_json(listing.to_json()) == listing


def test_a_listing_without_bad_records_is_readable_by_older() -> None:
    # Given the names that the first release with listings knows, all others of which end a run there
    known = {"number", "pages", "read", "fewest", "most", "before"}

    assert json.loads(Listing().to_json()).keys() == known
    assert json.loads(Listing(unusable=1).to_json()).keys() == known | {"unusable"}


def test_a_listing_of_a_newer_release_is_read() -> None:
    listing = Listing(number=2, before=(3, 4))
    newer = json.dumps({**json.loads(listing.to_json()), "slower": True})

    assert Listing.from_json(newer) == listing
