"""Following a list from page to page without being led astray or around in circles."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from worker.platform.base_url import BaseUrl
from worker.platform.errors import MalformedResponseError
from worker.platform.requests import Request

MOST_PAGES = 100_000


class Trail:
    """Remembers which pages of one list were asked for."""

    def __init__(self, first: Request) -> None:
        self._first = first
        self._seen = {_place(first)}

    def after(self, page: Mapping[str, Any], base: BaseUrl) -> Request | None:
        """The request for the page after `page`, or None where that was the last."""
        link = page["next"]
        if not link:
            return None
        following = next_page(self._first, link, base)
        if _place(following) in self._seen:
            raise MalformedResponseError("malformed answer: the pages of a list go around in a circle")
        if len(self._seen) >= MOST_PAGES:
            raise MalformedResponseError(f"malformed answer: a list of more than {MOST_PAGES} pages")
        self._seen.add(_place(following))
        return following


def next_page(request: Request, link: str, base: BaseUrl) -> Request:
    """`request` for the page at `link`, which must lie on the service itself."""
    path, query = base.relative(link)
    return replace(request, path=path, query=query)


def _place(request: Request) -> int:
    # A hash: a million links of a list with long filters would fill the memory.
    return hash((request.path, tuple(sorted(request.query))))
