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
from worker.platform import UntrustedLinkError, contains_secret
from worker.runs.keys import run_key
from worker.runs.model import Continue, Finish, Lease, Outcome, Reschedule, RunFailedError, Suspend
from worker.runs.scripts import run_scripts
from worker.services import Services
from worker.to_task import ledger
from worker.to_task.steps import SPREAD, ToTaskRun

NO_TASKS = "No tasks found to annotate"
MAX_PAGE_SIZE = 1_000
MAX_TASK_COUNT = 10**12
MAX_REPEATED_PAGES = 200
"""Pages in a row without a new id: tasks that are created meanwhile shift some onto known ones, and a backend
that filters after paging has empty ones."""


class TaskListApi(Protocol):
    """The call of the backend that discovery needs."""

    def list_tasks(
        self, filters: Mapping[str, Any], project: int, page_size: int = 100, url: str | None = None
    ) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Page:
    """One page: its ids, the link to the next page, and the number of all tasks where the backend says it."""

    ids: list[int]
    link: str | None
    count: int | None


def page_size(chunk: int) -> int:
    """Ids a page. Large pages save requests; a process holds at most one page and a remainder."""
    return min(MAX_PAGE_SIZE, max(100, chunk * 10))


def read_page(backend: TaskListApi, params: ToTaskParams, size: int, link: str | None) -> Page:
    """The page at `link`, or the first; `RunFailedError` when it is no list of integer ids."""
    try:
        answer = backend.list_tasks(params.task_filters, params.project, page_size=size, url=link)
    except UntrustedLinkError as error:
        # The link is stored, so every retry would be rejected for the same reason.
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
        # It would be stored in Redis until it is followed.
        raise RunFailedError("The backend's list of tasks is malformed: a link shows a token")
    count = answer.get("count")
    # An absurd count cannot be used to compute a percentage.
    known = count if type(count) is int and 0 <= count <= MAX_TASK_COUNT else None
    return Page([int(each) for each in ids if each], following or None, known)


def iter_task_ids(backend: TaskListApi, params: ToTaskParams, size: int) -> Iterator[int]:
    """Every task id once, for a direct call, which keeps them all in memory."""
    link: str | None = None
    seen: set[int] = set()
    links: set[str] = set()
    repeated = 0
    while True:
        page = read_page(backend, params, size, link)
        repeated = repeated + 1 if seen.issuperset(page.ids) else 0
        for task_id in page.ids:
            if task_id not in seen:
                seen.add(task_id)
                yield task_id
        link = page.link
        if link is None:
            return
        if link in links:
            raise circular_pages_error()
        if repeated >= MAX_REPEATED_PAGES:
            raise repeated_pages_error()
        links.add(link)


def circular_pages_error() -> RunFailedError:
    """The error for pages that link back to a page that was read: they would never end."""
    return RunFailedError("The backend's list of tasks is malformed: its pages go around in a circle")


def repeated_pages_error() -> RunFailedError:
    """The error for pages that always link to another one and bring no new task: they would never end."""
    return RunFailedError(
        f"The backend's list of tasks is malformed: {MAX_REPEATED_PAGES} pages in a row have no new task"
    )


@dataclass(frozen=True)
class Cursor:
    """How far the pages are read: number and link of the next page, tasks so far, whether it was the last."""

    page: int
    link: str | None
    total: int
    complete: bool


class PageCommit(StrEnum):
    """What happened to a page."""

    COMMITTED = "committed"
    STALE = "stale"
    """Another delivery has committed this page."""
    CIRCULAR = "circle"
    """Its link leads to a page that was read before."""
    REPEATED = "repeated"
    """It is the last of too many in a row that have no new id."""
    RUN_ENDED = "over"


class TaskIndex:
    """The ids of the run of `job`, in chunks of `size` ids; every page is counted once."""

    def __init__(self, redis: "Redis", job: str, size: int, lease: Lease | None = None) -> None:
        """`lease`: that of the step that reads the pages."""
        self._redis = redis
        self._polls, self._deliveries = (lease and lease.deliveries) or (run_key(job), "")
        self._job = job
        self._size = size
        self._scripts = run_scripts(redis, "worker.to_task")

    def cursor(self) -> Cursor:
        """Where reading continues."""
        found = self._redis.hmget(ledger.task_index_key(self._job), ["page", "link", "total", "complete"])
        page, link, total, complete = found
        return Cursor(int(page or 0), link or None, int(total or 0), bool(complete))

    def commit(self, number: int, page: Page) -> PageCommit:
        """Store page `number`, if the cursor is at it and the run has not ended."""
        job = self._job
        names = [
            run_key(job),
            job_key(job),
            ledger.task_index_key(job),
            ledger.seen_key(job),
            ledger.chunks_key(job),
            self._polls,
        ]
        limits = (self._size, MAX_REPEATED_PAGES, self._deliveries)
        return PageCommit(
            self._scripts.run("commit_page", names, number, page.link or "", *limits, *page.ids)
        )


MAX_STEP_SECONDS = 10.0
PROGRESS_STEP = "fetch_tasks"


def fetch_tasks(run: ToTaskRun, services: Services, clock: Callable[[], float] = time.monotonic) -> Outcome:
    """Read pages for a limited time, then reschedule; after the last page go on to annotating.

    Filters may depend on what annotating changes, so annotating starts after the last page.
    """
    message = run.message
    runs, settings = services.runs, services.settings
    runs.store.expire_with_run(run.job, *(key(run.job) for key in ledger.ALL))
    index = TaskIndex(services.redis, run.job, settings.worker_annotate_chunk, run.lease)
    until = clock() + min(settings.worker_visibility_timeout_seconds / 4, MAX_STEP_SECONDS)
    first = True
    cursor = index.cursor()
    while not cursor.complete:
        if not first and clock() > until:
            return Reschedule(0)
        first = False
        page = _read(services, message, cursor)
        match index.commit(cursor.page, page):
            case PageCommit.RUN_ENDED:
                return Suspend()
            case PageCommit.CIRCULAR:
                raise circular_pages_error()
            case PageCommit.REPEATED:
                raise repeated_pages_error()
        cursor = index.cursor()
        if page.count and not cursor.complete:
            runs.set_progress(run, PROGRESS_STEP, min(99.0, 100.0 * cursor.total / page.count))
    if cursor.total == 0:
        return Finish(JobStatus.FAILED, {"error": NO_TASKS})
    runs.set_progress(run, PROGRESS_STEP, 100)
    return Continue(SPREAD)


def _read(services: Services, message: ToTaskMessage, cursor: Cursor) -> Page:
    size = page_size(services.settings.worker_annotate_chunk)
    return read_page(services.backend(message.tenant), message.params, size, cursor.link)
