"""A model as a function: for what has nothing to load. It takes the request, and is called for each."""

from typing import Any

from starlette.requests import Request


async def word_count(request: Request) -> dict[str, int]:
    """Answers `{"text": ...}` with `{"words": 3}`."""
    data: dict[str, Any] = await request.json()
    return {"words": len(data["text"].split())}
