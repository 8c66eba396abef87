"""The events that an agent may send in place of plain lines: `{"type"?, "message"?}`."""

import json
from dataclasses import dataclass
from typing import Any

_KEYS = frozenset({"type", "message"})


@dataclass(frozen=True, slots=True)
class Event:
    """`type` "error" and "complete" end the log; any other only carries its message, or is a sign of life."""

    type: str = ""
    message: str | None = None


def event_of(text: str) -> Event | None:
    """`text` as an event, or None where it is a line.

    Strict: a job that prints JSON of its own (`{"type": "error", "epoch": 3}`) keeps its line.
    """
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not value or not value.keys() <= _KEYS:
        return None
    kind = value.get("type")
    return Event(kind or "", _text(value.get("message"))) if isinstance(kind, str | None) else None


def _text(message: Any) -> str | None:
    if message is None:
        return None
    text = message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
    # JSON can spell halves of characters that no encoding can carry further.
    return text.encode(errors="replace").decode()
