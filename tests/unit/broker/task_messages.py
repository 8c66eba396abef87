"""Messages of tasks as kombu hands them to a consumer."""

import json
from typing import Any

from kombu.message import Message

HEADERS: dict[str, Any] = {"task": "deploy", "id": "1"}


def message(body: Any = None, *, content_type: str = "application/json", **headers: Any) -> Message:
    """A message with `body`, as text or as JSON; a header whose value is "absent" is left out."""
    text = body if isinstance(body, str) else json.dumps([[], {}, {}] if body is None else body)
    return Message(
        body=text.encode(),
        headers={name: value for name, value in (HEADERS | headers).items() if value != "absent"},
        content_type=content_type,
        content_encoding="utf-8",
        accept={"application/json"},
    )
