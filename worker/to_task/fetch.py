"""The step that collects the ids. Filters may depend on what annotating changes, so it ends before that."""

import time
from collections.abc import Callable

from shared.messages import ToTaskMessage
from shared.statuses import JobStatus
from worker.runs.model import Continue, Finish, Outcome, Park, PollAgain, Run
from worker.services import Services
from worker.to_task import keys
from worker.to_task.catalogue import Catalogue, Commit, Cursor
from worker.to_task.discovery import NO_TASKS, Page, going_in_circles, page_size, read_page
from worker.to_task.message import message_of
from worker.to_task.steps import SPREAD

LONGEST_DELIVERY = 10.0
PROGRESS = "fetch_tasks"


def fetch_tasks(run: Run, services: Services, clock: Callable[[], float] = time.monotonic) -> Outcome:
    """Read pages for a while; come back for more, or open the window of chunks when that was the last."""
    message = message_of(run)
    runs, settings = services.runs, services.settings
    keys.own_all(runs.store, run.job)
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
