"""What the HTTP APIs of the backend and the agent share: routes, errors, strict bodies, and pages."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

Handler = Callable[[Request, Any], Awaitable[object]]
RequestCheck = Callable[[Request], None]
ResponseHook = Callable[[Request, bytes, int], None]

MAX_PAGE_SIZE: Final = 1000
NUMBER_TYPES: Final = (int, float)


class ApiError(Exception):
    """The request is answered with an error; `body` is the JSON of the response."""

    def __init__(self, status: int, body: object) -> None:
        super().__init__(status, body)
        self.status, self.body = status, body


def api_error(status: int, detail: str) -> ApiError:
    """An error whose body is `{"detail": …}`."""
    return ApiError(status, {"detail": detail})


def json_response(content: object, status: int = 200) -> Response:
    """A JSON response."""
    return Response(json.dumps(content), status, media_type="application/json")


def validated(
    body: object, known: Mapping[str, type | tuple[type, ...]], required: Sequence[str] = ()
) -> dict[str, Any]:
    """Return `body` if it has known keys of the right types, else raise a 400 that names each mistake."""
    if not isinstance(body, dict):
        raise api_error(400, "Invalid data: expected an object.")
    mistakes = {key: ["unknown"] for key in body if key not in known}
    mistakes |= {key: ["required"] for key in required if key not in body}
    mistakes |= {
        key: ["wrong type"]
        for key, value in body.items()
        if key in known and not _has_type(value, known[key])
    }
    if mistakes:
        raise ApiError(400, mistakes)
    return body


def _has_type(value: object, types: type | tuple[type, ...]) -> bool:
    if isinstance(value, bool):
        # In Python a bool is an int, in JSON it is not a number.
        return types in (bool, object) or (isinstance(types, tuple) and bool in types)
    return isinstance(value, types)


def path_id(request: Request, name: str = "id") -> int | str:
    """An id in the path: an integer if it consists of digits."""
    text = str(request.path_params[name])
    return int(text) if text.isascii() and text.isdigit() else text


def page_params(request: Request) -> tuple[int, int]:
    """`page` and `page_size` of the query string."""
    page = _positive_int(request, "page", 1)
    return page, min(_positive_int(request, "page_size", 100), MAX_PAGE_SIZE)


def page_response(request: Request, count: int, results: Sequence[object]) -> dict[str, object]:
    """One page of a list. As on the platform, a page beyond the last is a 404."""
    page, size = page_params(request)
    if page > 1 and (page - 1) * size >= count:
        raise api_error(404, "Invalid page.")
    next_url = str(request.url.include_query_params(page=page + 1)) if page * size < count else None
    previous_url = str(request.url.include_query_params(page=page - 1)) if page > 1 else None
    return {"count": count, "next": next_url, "previous": previous_url, "results": results}


def _positive_int(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ApiError(400, {name: ["must be a positive integer"]})
    return int(text)


class Api:
    """Makes routes. `check_request` may raise an `ApiError`; `on_response` is called for every response."""

    def __init__(
        self, check_request: RequestCheck, on_response: ResponseHook = lambda _request, _body, _status: None
    ) -> None:
        self._check_request, self._on_response = check_request, on_response

    def route(self, path: str, **handlers: Handler) -> Route:
        """A route with a handler for each method; a JSON value from a handler is sent with status 200."""

        async def endpoint(request: Request) -> Response:
            content = b""
            try:
                content = await request.body()
                self._check_request(request)
                handler = handlers.get(request.method)
                if handler is None:
                    raise api_error(405, f'Method "{request.method}" not allowed.')
                result = await handler(request, _parse_json(content))
                response = result if isinstance(result, Response) else json_response(result)
            except ApiError as error:
                response = json_response(error.body, error.status)
            except ClientDisconnect:
                return Response(status_code=499)
            self._on_response(request, content, response.status_code)
            return response

        # All methods, because Starlette would answer others itself, without `on_response`.
        return Route(path, endpoint, methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])

    def not_found_route(self) -> Route:
        """The last route, which answers every other path with a 404."""

        async def missing(_request: Request, _body: object) -> object:
            raise api_error(404, "Not found.")

        methods = ("GET", "POST", "PUT", "PATCH", "DELETE")
        return self.route("/{path:path}", **dict.fromkeys(methods, missing))


def _parse_json(content: bytes) -> Any:
    if not content:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise api_error(400, "JSON parse error.") from None
