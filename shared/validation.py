"""What pydantic found wrong, as text that a person reads."""

from pydantic import ValidationError
from pydantic_core import ErrorDetails

MAX_MISTAKES = 20
"""A message may have a hundred thousand wrong keys; the rest are counted."""

MAX_NAME_CHARS = 100
"""Of one part of a key's path, which the author of the message chose."""


def mistake_parts(details: ErrorDetails) -> tuple[str, str]:
    """Split one of pydantic's mistakes into its place and its text.

    Args:
        details: An item of `ValidationError.errors()`.

    Returns:
        The dotted path of the key, empty for the whole model, and what is wrong with it.
    """
    where = ".".join(str(part)[:MAX_NAME_CHARS] for part in details["loc"])
    return where, details["msg"].removeprefix("Value error, ")


def describe_validation_error(error: ValidationError, *, as_sentences: bool = False) -> str:
    """Say where and what is wrong, in one line, without the values that were found there.

    Args:
        error: What a pydantic model raised.
        as_sentences: Write `code is missing` and `code must be text` instead of `code: Field required` and
            `code: must be text`.

    Returns:
        The first `MAX_MISTAKES` mistakes separated by `; `, then how many more there are.
    """
    found = error.errors(include_input=False, include_url=False, include_context=False)
    lines = []
    for details in found[:MAX_MISTAKES]:
        where, what = mistake_parts(details)
        if as_sentences:
            lines.append(f"{where} is missing" if details["type"] == "missing" else f"{where} {what}".strip())
        else:
            lines.append(f"{where}: {what}" if where else what)
    if len(found) > MAX_MISTAKES:
        lines.append(f"and {len(found) - MAX_MISTAKES} more")
    return "; ".join(lines)
