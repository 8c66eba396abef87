"""The WSGI application of `/metrics`, `/live` and `/ready`."""

from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Final

from prometheus_client import CONTENT_TYPE_LATEST

from worker.monitoring.exposition import Exposition
from worker.monitoring.worker_states import problems, read_states, states_folder

TEXT: Final = "text/plain; charset=utf-8"

StartResponse = Callable[[str, list[tuple[str, str]]], object]


class Pages:
    """The WSGI application."""

    def __init__(self, exposition: Exposition) -> None:
        self._exposition = exposition

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer a request."""
        status, content_type, body = self._answer(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        start_response(
            f"{status.value} {status.phrase}",
            [("Content-Type", content_type), ("Content-Length", str(len(body)))],
        )
        return [body]

    def _answer(self, method: str, path: str) -> tuple[HTTPStatus, str, bytes]:
        if method not in ("GET", "HEAD"):
            return HTTPStatus.METHOD_NOT_ALLOWED, TEXT, b"GET only\n"
        match path:
            case "/metrics":
                return HTTPStatus.OK, CONTENT_TYPE_LATEST, self._exposition.text()
            case "/live" | "/ready":
                found = problems(list(read_states(states_folder())), ready=path == "/ready")
                status = HTTPStatus.SERVICE_UNAVAILABLE if found else HTTPStatus.OK
                return status, TEXT, "".join(f"{line}\n" for line in found or ["ok"]).encode()
        return HTTPStatus.NOT_FOUND, TEXT, b"/metrics, /live or /ready\n"
