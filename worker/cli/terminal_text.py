"""Text of other people's programs on a terminal."""

import json
import re
from typing import Any, Final

from rich.markup import escape

NOT_COLOURS: Final = re.compile(
    r"\x1b(?!\[[0-9;:]*m)(?:\[[0-9;:?]*[ -/]*[@-~]?|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?"
    r"|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]"
)
"""What a program can do to a terminal beyond colouring its text."""


def shown(text: str) -> str:
    """A line as a terminal may have it: the last state of a progress bar, colours, and nothing else."""
    text = NOT_COLOURS.sub("", text.rstrip("\r").rpartition("\r")[2])
    return f"{text}\x1b[0m" if "\x1b" in text else text


def cell(text: str) -> str:
    """Text of one line for rich: neither markup nor codes for the terminal."""
    return escape("".join(character if character.isprintable() else " " for character in text))


def json_for_terminal(value: Any) -> str:
    """JSON to be read, of which a terminal obeys nothing: what is not printable stays escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(
        character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1]
        for character in text
    )
