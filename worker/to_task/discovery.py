"""Collect the ids of a project's tasks, page by page, before any of them is annotated."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from shared.messages import ToTaskParams
from worker.platform import StrayLinkError, holds_secret
from worker.runs.model import RunFailedError

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
    except StrayLinkError as error:
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
    if following and holds_secret(following):
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
