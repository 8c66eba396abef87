"""The common ground of the two services: routes, tokens, strict bodies, answers and pages."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

Handler = Callable[[Request, Any], Awaitable[object]]
Before = Callable[[Request], None]
After = Callable[[Request, bytes, int], None]

MAX_PAGE_SIZE: Final = 1000
NUMBER: Final = (int, float)


class Refusal(Exception):
    """The answer is an error; `body` is its JSON."""

    def __init__(self, status: int, body: object) -> None:
        super().__init__(status, body)
        self.status, self.body = status, body


def refusal(status: int, detail: str) -> Refusal:
    """A refusal with the usual `detail`."""
    return Refusal(status, {"detail": detail})


def answer(content: object, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(json.dumps(content), status, media_type="application/json")


def checked(
    body: object, known: Mapping[str, type | tuple[type, ...]], required: Sequence[str] = ()
) -> dict[str, Any]:
    """`body` as a mapping of known keys of the right types; else a 400 that names each mistake."""
    if not isinstance(body, dict):
        raise refusal(400, "Invalid data: expected an object.")
    mistakes = {key: ["unknown"] for key in body if key not in known}
    mistakes |= {key: ["required"] for key in required if key not in body}
    mistakes |= {
        key: ["wrong type"] for key, value in body.items() if key in known and not _fits(value, known[key])
    }
    if mistakes:
        raise Refusal(400, mistakes)
    return body


def _fits(value: object, kinds: type | tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        # Python takes True for a number; JSON does not.
        return kinds in (bool, object) or (isinstance(kinds, tuple) and bool in kinds)
    return isinstance(value, kinds)


def identifier(request: Request, name: str = "id") -> int | str:
    """An id out of the path: an integer where it looks like one."""
    text = str(request.path_params[name])
    return int(text) if text.isascii() and text.isdigit() else text


def bounds(request: Request) -> tuple[int, int]:
    """`page` and `page_size` of the query."""
    page = _positive(request, "page", 1)
    return page, min(_positive(request, "page_size", 100), MAX_PAGE_SIZE)


def paged(request: Request, count: int, results: list[Any]) -> dict[str, Any]:
    """One page of a list; a page beyond the last is a 404, as the platform's lists do."""
    page, size = bounds(request)
    if page > 1 and (page - 1) * size >= count:
        raise refusal(404, "Invalid page.")
    following = str(request.url.include_query_params(page=page + 1)) if page * size < count else None
    previous = str(request.url.include_query_params(page=page - 1)) if page > 1 else None
    return {"count": count, "next": following, "previous": previous, "results": results}


def _positive(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise Refusal(400, {name: ["must be a positive integer"]})
    return int(text)


class Api:
    """Makes routes: `before` may refuse a request, `after` hears of every answer."""

    def __init__(self, before: Before, after: After = lambda _request, _body, _status: None) -> None:
        self._before, self._after = before, after

    def route(self, path: str, **handlers: Handler) -> Route:
        """A route with a handler a method; a handler's JSON value is answered with 200."""

        async def endpoint(request: Request) -> Response:
            content = b""
            try:
                content = await request.body()
                self._before(request)
                handler = handlers.get(request.method)
                if handler is None:
                    raise refusal(405, f'Method "{request.method}" not allowed.')
                result = await handler(request, _parsed(content))
                response = result if isinstance(result, Response) else answer(result)
            except Refusal as refused:
                response = answer(refused.body, refused.status)
            except ClientDisconnect:
                return Response(status_code=499)
            self._after(request, content, response.status_code)
            return response

        # Starlette would answer a wrong method by itself, unheard by `after`.
        return Route(path, endpoint, methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])

    def nothing_else(self) -> Route:
        """The last route: every other path is a 404."""

        async def missing(_request: Request, _body: object) -> object:
            raise refusal(404, "Not found.")

        methods = ("GET", "POST", "PUT", "PATCH", "DELETE")
        return self.route("/{path:path}", **dict.fromkeys(methods, missing))


def _parsed(content: bytes) -> Any:
    if not content:
        return None
    try:
        return json.loads(content)
    except ValueError:
        raise refusal(400, "JSON parse error.") from None
