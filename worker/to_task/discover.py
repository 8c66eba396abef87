"""Collect the ids of a project's tasks, page by page, before any of them is annotated."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from redis import Redis

from shared.channels import job_key
from shared.messages import ToTaskMessage, ToTaskParams
from shared.statuses import JobStatus
from worker.lua import Scripts
from worker.platform import UntrustedLinkError, contains_secret
from worker.runs.keys import run_key
from worker.runs.model import Continue, Finish, Outcome, Park, PollAgain, Run, RunFailedError
from worker.services import Services
from worker.to_task import ledger
from worker.to_task.steps import SPREAD, message_of

NO_TASKS = "No tasks found to annotate"
LARGEST_PAGE = 1_000
MOST_TASKS = 10**12


class TaskLists(Protocol):
    """The call of the backend that discovery needs."""

    def list_tasks(
        self, filters: Mapping[str, Any], project: int, page_size: int = 100, url: str | None = None
    ) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Page:
    """One page: its ids, the link to the next, and how many tasks there are in all, where that is known."""

    ids: list[int]
    link: str | None
    count: int | None


def page_size(chunk: int) -> int:
    """Large pages; a page and the remainder of the one before are all that a process ever holds."""
    return min(LARGEST_PAGE, max(100, chunk * 10))


def read_page(backend: TaskLists, params: ToTaskParams, size: int, link: str | None) -> Page:
    """The page at `link`, or the first; `RunFailedError` when it is no list of integer ids."""
    try:
        answer = backend.list_tasks(params.task_filters, params.project, page_size=size, url=link)
    except UntrustedLinkError as error:
        # The link is kept: it would be refused for as long as the run came back for it.
        raise RunFailedError(f"The backend's list of tasks cannot be followed: {error}") from None
    results = answer.get("results")
    if not isinstance(results, list):
        raise RunFailedError("The backend's list of tasks is malformed: it has no results")
    ids = [each.get("id") if isinstance(each, dict) else None for each in results]
    if not all(type(each) is int and each > 0 for each in ids):
        raise RunFailedError(
            "The backend's list of tasks is malformed: the id of a task is no positive integer"
        )
    following = answer.get("next")
    if following is not None and not isinstance(following, str):
        raise RunFailedError("The backend's list of tasks is malformed: the link to the next page is no text")
    if following and contains_secret(following):
        # It is kept in Redis until it is followed.
        raise RunFailedError("The backend's list of tasks is malformed: a link shows a token")
    count = answer.get("count")
    # One beyond all measure is no number that a share could be reckoned from.
    known = count if type(count) is int and 0 <= count <= MOST_TASKS else None
    return Page([int(each) for each in ids if each], following or None, known)


def all_ids(backend: TaskLists, params: ToTaskParams, size: int) -> Iterator[int]:
    """Every id once, for a direct call, which holds them all."""
    link: str | None = None
    seen: set[int] = set()
    links: set[str] = set()
    while True:
        page = read_page(backend, params, size, link)
        for task_id in page.ids:
            if task_id not in seen:
                seen.add(task_id)
                yield task_id
        link = page.link
        if link is None:
            return
        if link in links:
            raise going_in_circles()
        links.add(link)


def going_in_circles() -> RunFailedError:
    """The pages of a list that link to each other never end."""
    return RunFailedError("The backend's list of tasks is malformed: its pages go around in a circle")


@dataclass(frozen=True)
class Cursor:
    """How far the pages are read: the next page's number and link, the tasks so far, whether that is all."""

    page: int
    link: str | None
    total: int
    complete: bool


class Commit(StrEnum):
    """What became of a page."""

    COMMITTED = "committed"
    STALE = "stale"
    """Another delivery has taken this page in."""
    CIRCLE = "circle"
    """Its link leads to a page that was read."""
    OVER = "over"


class Catalogue:
    """The catalogue of the run of `job`, whose chunks hold `size` ids."""

    def __init__(self, redis: "Redis", job: str, size: int) -> None:
        self._redis = redis
        self._job = job
        self._size = size
        self._scripts = Scripts(redis, "worker.to_task")

    def cursor(self) -> Cursor:
        """Where to go on."""
        found = self._redis.hmget(ledger.catalogue_key(self._job), ["page", "link", "total", "complete"])
        page, link, total, complete = found
        return Cursor(int(page or 0), link or None, int(total or 0), bool(complete))

    def commit(self, number: int, page: Page) -> Commit:
        """Take page `number` in, if the cursor stands there and the run lives."""
        job = self._job
        names = [
            run_key(job),
            job_key(job),
            ledger.catalogue_key(job),
            ledger.seen_key(job),
            ledger.chunks_key(job),
        ]
        answer = self._scripts.run("commit_page", names, number, page.link or "", self._size, *page.ids)
        return Commit(answer)


LONGEST_DELIVERY = 10.0
PROGRESS = "fetch_tasks"


def fetch_tasks(run: Run, services: Services, clock: Callable[[], float] = time.monotonic) -> Outcome:
    """Read pages for a while; come back for more, or open the window of chunks when that was the last."""
    message = message_of(run)
    runs, settings = services.runs, services.settings
    ledger.own_all(runs.store, run.job)
    catalogue = Catalogue(services.redis, run.job, settings.worker_annotate_chunk)
    until = clock() + min(settings.worker_visibility_timeout_seconds / 4, LONGEST_DELIVERY)
    first = True
    cursor = catalogue.cursor()
    while not cursor.complete:
        if not first and clock() > until:
            return PollAgain(0)
        first = False
        page = _read(services, message, cursor)
        match catalogue.commit(cursor.page, page):
            case Commit.OVER:
                return Park()
            case Commit.CIRCLE:
                raise going_in_circles()
        cursor = catalogue.cursor()
        if page.count and not cursor.complete:
            runs.advance(run, PROGRESS, min(99.0, 100.0 * cursor.total / page.count))
    if cursor.total == 0:
        return Finish(JobStatus.FAILED, {"error": NO_TASKS})
    runs.advance(run, PROGRESS, 100)
    return Continue(SPREAD)


def _read(services: Services, message: ToTaskMessage, cursor: Cursor) -> Page:
    size = page_size(services.settings.worker_annotate_chunk)
    return read_page(services.backend(message.tenant), message.params, size, cursor.link)
