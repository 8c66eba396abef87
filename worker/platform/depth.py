"""How deeply JSON is nested, without recursion."""

from typing import Any

DEEPEST = 100
"""Levels of lists and objects that a message or an answer may have. Parsing bears more than what comes after
it."""


def too_deep(text: bytes | str, value: Any) -> bool:
    """Whether `value`, which is `text` parsed, is nested more deeply than `DEEPEST`."""
    brackets = (b"[", b"{") if isinstance(text, bytes) else ("[", "{")
    if sum(text.count(bracket) for bracket in brackets) <= DEEPEST:  # type: ignore[arg-type, misc]
        return False
    floor = [value]
    for _ in range(DEEPEST + 1):
        floor = [
            child
            for part in floor
            if isinstance(part, list | dict)
            for child in (part.values() if isinstance(part, dict) else part)
        ]
        if not floor:
            return False
    return True
