"""A class that takes the HTTP request and returns the HTTP response: for headers and statuses."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response


class WordCount:
    """Answers `{"text": ...}` with `{"words": 3}`, and says how many letters it read in a header."""

    async def __call__(self, request: Request) -> Response:
        data = await request.json()
        if "text" not in data:
            return JSONResponse({"detail": "text is missing"}, status_code=422)
        headers = {"X-Letters": str(len(data["text"]))}
        return JSONResponse({"words": len(data["text"].split())}, headers=headers)
