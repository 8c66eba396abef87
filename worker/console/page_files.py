"""The files of the page, in the language of the reader, and the images that a demo leaves."""

import json
import re
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

MEDIA_TYPES: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
SAMPLE_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,100}\.png")
FILE_NAME: Final = re.compile(r"[a-z0-9_]+\.(html|css|js|svg)")
LANGUAGES: Final = ("en", "ko")
LANGUAGE_COOKIE: Final = "synapse_console_language"
NO_SUCH_PAGE: Final = "no such page\n"

Handler = Callable[[Request], Awaitable[Response]]


class PageFiles:
    """Answers with files."""

    def __init__(self, samples: Path | None) -> None:
        """`samples`: a folder of images, and of their labels in `samples.json`; None without any."""
        self._samples = samples

    @property
    def has_samples(self) -> bool:
        """Whether there are images to be shown."""
        return self._samples is not None

    def page(self, name: str) -> Handler:
        """Answers with an HTML file in the reader's language."""

        async def answer(request: Request) -> Response:
            file = _file(name, _language(request))
            file.headers["Vary"] = "Accept-Language, Cookie"
            return file

        return answer

    async def static(self, request: Request) -> Response:
        """A script or a style of the page."""
        return _file(request.path_params["name"])

    def labels(self) -> Any:
        """The images of each run with their labels, as the demo has written them."""
        file = self._samples / "samples.json" if self._samples else None
        return json.loads(file.read_text(encoding="utf-8")) if file and file.exists() else []

    async def sample(self, request: Request) -> Response:
        """One of the images."""
        name = request.path_params["name"]
        if self._samples is None or not SAMPLE_NAME.fullmatch(name):
            raise HTTPException(404)
        file = self._samples / name
        if not file.is_file():
            raise HTTPException(404)
        return Response(file.read_bytes(), media_type="image/png")


def _language(request: Request) -> str:
    """What the reader has chosen on the page, else the browser's first language that the page speaks."""
    wanted = [request.cookies.get(LANGUAGE_COOKIE, "")]
    wanted += re.split(r"[,;]", request.headers.get("accept-language", ""))
    known = (part.strip().lower().partition("-")[0] for part in wanted)
    return next((language for language in known if language in LANGUAGES), LANGUAGES[0])


def _file(name: str, language: str = LANGUAGES[0]) -> Response:
    if not FILE_NAME.fullmatch(name):
        return PlainTextResponse(NO_SUCH_PAGE, 404)
    found = resources.files("worker.console") / "static" / name
    if not found.is_file():
        return PlainTextResponse(NO_SUCH_PAGE, 404)
    media_type = f"{MEDIA_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
    content = found.read_bytes().replace(b'lang="en"', f'lang="{language}"'.encode(), 1)
    return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})
