"""The ids of a run on their way into chunks: a cursor over pages that counts each page once."""

from dataclasses import dataclass
from enum import StrEnum

from redis import Redis

from shared.channels import job_key
from worker.lua import Scripts
from worker.runs.keys import run_key
from worker.to_task import keys
from worker.to_task.discovery import Page


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
        found = self._redis.hmget(keys.catalogue_key(self._job), ["page", "link", "total", "complete"])
        page, link, total, complete = found
        return Cursor(int(page or 0), link or None, int(total or 0), bool(complete))

    def commit(self, number: int, page: Page) -> Commit:
        """Take page `number` in, if the cursor stands there and the run lives."""
        job = self._job
        names = [
            run_key(job),
            job_key(job),
            keys.catalogue_key(job),
            keys.seen_key(job),
            keys.chunks_key(job),
        ]
        answer = self._scripts.run("commit_page", names, number, page.link or "", self._size, *page.ids)
        return Commit(answer)
