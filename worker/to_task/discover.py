"""Collect the ids of a project's tasks, page by page, before any of them is annotated."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from typing import Any, Protocol

from redis import Redis

from shared.channels import job_key
from shared.messages import ToTaskMethod, ToTaskParams
from shared.statuses import JobStatus, ToTaskResult
from worker.platform import NotFoundError, UntrustedLinkError, contains_secret
from worker.platform.requests import MAX_PAGES
from worker.pre_processor.dispatch import dispatch_body
from worker.pre_processor.serve_application import classify_serve_app, list_recent_records_or_empty
from worker.pre_processor.waitlist import pre_processor_of
from worker.runs.keys import run_key
from worker.runs.model import Finish, Lease, Outcome, Reschedule, RunFailedError, Suspend
from worker.runs.scripts import run_scripts
from worker.services import Services
from worker.to_task import ledger
from worker.to_task.prepare import run_to_retry, warm_up
from worker.to_task.steps import ToTaskRun
from worker.workflow.ended_runs import EndedRuns
from worker.workflow.texts import Text, in_language

NO_TASKS = "No tasks found to annotate"
MAX_PAGE_SIZE = 1_000
ROUNDS_IN_CHUNK = 16
"""A chunk by inference has at least so many tasks for each inference that the pre-processor takes at once: it
is the only one of its run in flight, and towards its end the pre-processor has less and less to do."""
MAX_CHUNK_BY_INFERENCE = 1_000
MAX_TASK_COUNT = 10**12
MAX_REPEATED_PAGES = 200
"""Pages in a row without a new id: tasks that are created meanwhile shift some onto known ones, and a backend
that filters after paging has empty ones."""


def chunk_size(run: ToTaskRun, setting: int) -> int:
    """Tasks in a chunk of the run, where WORKER_ANNOTATE_CHUNK is `setting`."""
    params = run.message.params
    if params.method is not ToTaskMethod.INFERENCE:
        return setting
    slots = pre_processor_of(run).concurrent_requests(params)
    return max(setting, min(ROUNDS_IN_CHUNK * slots, MAX_CHUNK_BY_INFERENCE))


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
    unusable: int = 0
    """Its records without an id that a task can have."""


MAX_LISTINGS = 3
"""Times that the pages are read when what they hold does not fit their count."""


@dataclass(frozen=True)
class Listing:
    """One reading of all pages. Tasks that come or go meanwhile shift others onto pages that were read."""

    number: int = 1
    pages: int = 0
    read: int = 0
    fewest: int | None = None
    """The smallest count that a page said; None when none did."""
    most: int | None = None
    unusable: int = 0
    """Of these, the records that are no task, because their id is none."""
    before: tuple[int, int] | None = None
    """How many tasks the listing before had read, and the largest count that its pages said."""

    @classmethod
    def from_json(cls, text: str | None) -> "Listing":
        """The listing as `to_json` wrote it, also of another release; the first one for none."""
        stored = json.loads(text or "{}")
        known = {each.name: stored[each.name] for each in fields(cls) if each.name in stored}
        if known.get("before"):
            known["before"] = tuple(known["before"])
        return cls(**known)

    @property
    def max_repeated_pages(self) -> int:
        """Pages in a row that may have no new id, which is what all pages of a later listing may have."""
        return MAX_REPEATED_PAGES if self.number == 1 else MAX_PAGES

    def to_json(self) -> str:
        """The listing as text. Workers of older releases read it, which fail the run at an unknown name."""
        stored = asdict(self)
        if not self.unusable:
            del stored["unusable"]
        return json.dumps(stored)

    def after(self, page: Page) -> "Listing":
        """The same after another page was read."""
        counts = [count for count in (self.fewest, self.most, page.count) if count is not None]
        return replace(
            self,
            pages=self.pages + 1,
            read=self.read + len(page.ids) + page.unusable,
            unusable=self.unusable + page.unusable,
            fewest=min(counts, default=None),
            most=max(counts, default=None),
        )

    def next(self) -> "Listing | None":
        """The listing to read after the last page of this one; None when it fits, or would not help."""
        if self.fits or self.number >= MAX_LISTINGS or self._counted() == self.before:
            return None
        return Listing(self.number + 1, before=self._counted())

    @property
    def fits(self) -> bool:
        """Whether nothing came or went while the pages were read, as far as the backend says."""
        return self.most is None or (self.fewest == self.most and self.read >= self.most)

    def _counted(self) -> tuple[int, int]:
        return self.read, self.most or 0

    def warning(self, total: int, language: str = "en") -> str | None:
        """What users are to know of the last listing, after `total` tasks were listed in all."""
        if self.fits:
            left_out = in_language(language, Text.LEFT_OUT, count=self.unusable)
            return left_out if self.unusable else None
        is_fewer = self.most is not None and total < self.most
        kind = Text.FEWER_LISTED if is_fewer else Text.CHANGED_LISTED
        return in_language(language, kind, total=total, most=self.most)


def page_size(chunk: int) -> int:
    """Ids a page. Large pages save requests; a process holds at most one page and a remainder."""
    return min(MAX_PAGE_SIZE, max(100, chunk * 10))


def read_page(backend: TaskListApi, params: ToTaskParams, size: int, link: str | None) -> Page:
    """The page at `link`, or the first; `RunFailedError` when it is no list, or no id in it is an integer."""
    try:
        answer = backend.list_tasks(params.task_filters, params.project, page_size=size, url=link)
    except NotFoundError:
        if link is None:
            raise
        # Tasks were deleted since the page before, which was the last one then.
        return Page([], None, None)
    except UntrustedLinkError as error:
        # The link is stored, so every retry would be rejected for the same reason.
        raise RunFailedError(f"The backend's list of tasks cannot be followed: {error}") from None
    results = answer.get("results")
    if not isinstance(results, list):
        raise RunFailedError("The backend's list of tasks is malformed: it has no results")
    ids = [each.get("id") if isinstance(each, dict) else None for each in results]
    usable = [each for each in ids if type(each) is int and each > 0]
    if ids and not usable:
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
    return Page(usable, following or None, known, len(ids) - len(usable))


def iter_task_ids(
    backend: TaskListApi, params: ToTaskParams, size: int, warn: Callable[[str], None] = lambda _: None
) -> Iterator[int]:
    """Every task id once, for a direct call, which keeps them all in memory.

    `warn` is called with what users are to know of the list.
    """
    seen: set[int] = set()
    listing: Listing | None = Listing()
    while listing is not None:
        links: set[str] = set()
        link: str | None = None
        repeated = 0
        while link is not None or not listing.pages:
            page = read_page(backend, params, size, link)
            listing = listing.after(page)
            repeated = repeated + 1 if seen.issuperset(page.ids) else 0
            for task_id in page.ids:
                if task_id not in seen:
                    seen.add(task_id)
                    yield task_id
            link = page.link
            if link is not None and link in links:
                raise circular_pages_error()
            if link is not None and repeated >= listing.max_repeated_pages:
                raise repeated_pages_error()
            links.add(link or "")
        last, listing = listing, listing.next()
    if text := last.warning(len(seen)):
        warn(text)


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
    listing: Listing = Listing()


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
        names = ["page", "link", "total", "complete", "listing"]
        page, link, total, complete, listing = self._redis.hmget(ledger.task_index_key(self._job), names)
        return Cursor(
            int(page or 0), link or None, int(total or 0), bool(complete), Listing.from_json(listing)
        )

    def chunks(self) -> int:
        """How many chunks the ids make so far."""
        return int(self._redis.hget(ledger.task_index_key(self._job), "chunks") or 0)

    def commit(self, number: int, page: Page, listing: Listing | None = None) -> PageCommit:
        """Store page `number`, if the cursor is at it and the run has not ended.

        `listing` is the one of which it is a page.
        """
        job = self._job
        listing = (listing or Listing()).after(page)
        following = listing.next() if page.link is None else None
        stored = (following or listing).to_json()
        last = "1" if page.link is None and following is None else ""
        read = f"link:{listing.number}:{page.link}" if page.link else ""
        names = [
            run_key(job),
            job_key(job),
            ledger.task_index_key(job),
            ledger.seen_key(job),
            ledger.chunks_key(job),
            self._polls,
        ]
        limits = (self._size, listing.max_repeated_pages, self._deliveries)
        link = page.link or ""
        return PageCommit(
            self._scripts.run("commit_page", names, number, link, *limits, read, stored, last, *page.ids)
        )


MAX_STEP_SECONDS = 10.0
PROGRESS_STEP = "fetch_tasks"


def fetch_tasks(
    run: ToTaskRun,
    services: Services,
    annotate: Callable[[ToTaskRun, Services], Outcome],
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Read pages for a limited time, then reschedule; after the last page `annotate` begins the annotating.

    Filters may depend on what annotating changes, so annotating starts after the last page.
    """
    message = run.message
    runs, settings = services.runs, services.settings
    warm_up(run, services)  # the worker that prepared the run may be another one, or it may be long ago
    runs.store.expire_with_run(run.job, *(key(run.job) for key in ledger.ALL))
    size = chunk_size(run, settings.worker_annotate_chunk)
    index = TaskIndex(services.redis, run.job, size, run.lease)
    until = clock() + min(settings.worker_visibility_timeout_seconds / 4, MAX_STEP_SECONDS)
    first = True
    cursor = index.cursor()
    while not cursor.complete:
        if not first and clock() > until:
            return Reschedule(0)
        first = False
        page = _read(run, services, cursor)
        match index.commit(cursor.page, page, cursor.listing):
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
    if text := cursor.listing.warning(cursor.total, message.language):
        runs.events.message(run.job, text, step=PROGRESS_STEP, level="warning")
    runs.set_progress(run, PROGRESS_STEP, 100)
    if message.dry_run:
        return _dry_run(run, services, cursor.total, index.chunks())
    return annotate(run, services)


def _dry_run(run: ToTaskRun, services: Services, tasks: int, chunks: int) -> Finish:
    """End the run with what it would do."""
    message, body = run.message, None
    if message.params.method is ToTaskMethod.INFERENCE:
        target = pre_processor_of(run)
        records = list_recent_records_or_empty(services.backend(message.tenant), target)
        if classify_serve_app(records)[0] != "running":
            body = dispatch_body(target, message.language)
    first = (
        f"{pre_processor_of(run).release} would be deployed first" if body else "nothing would be dispatched"
    )
    skipped = ", those that have data would be left alone" if message.skip_annotated else ""
    text = f"Dry run: {tasks} tasks in {chunks} chunks would be annotated{skipped}; {first}"
    result = ToTaskResult(
        status=JobStatus.SUCCEEDED,
        message=text,
        total_tasks=tasks,
        success_count=0,
        failed_count=0,
        failures=[],
    )
    found = {"tasks": tasks, "chunks": chunks, "dispatch": body}
    services.runs.events.message(run.job, text, step=PROGRESS_STEP)
    return Finish(JobStatus.SUCCEEDED, {**result.model_dump(mode="json"), "dry_run": found})


def _read(run: ToTaskRun, services: Services, cursor: Cursor) -> Page:
    message, size = run.message, page_size(services.settings.worker_annotate_chunk)
    if message.only_failed_of is not None:
        return _read_failed_tasks(run, services, size, cursor.link)
    return read_page(services.backend(message.tenant), message.params, size, cursor.link)


_FAILED_TASKS = "failed:"
"""Begins the link to a page of the failed tasks of an ended run, which lie in Redis."""


def _read_failed_tasks(run: ToTaskRun, services: Services, size: int, link: str | None) -> Page:
    """A page of the tasks that failed in the run that is retried; it may be forgotten between two pages."""
    ended = run_to_retry(run, services)
    start = int(link.removeprefix(_FAILED_TASKS)) if link else 0
    ids = EndedRuns(services.redis).failed_tasks(ended.job, start, size)
    end = start + len(ids)
    return Page(ids, f"{_FAILED_TASKS}{end}" if ids and end < ended.failed else None, ended.failed)
