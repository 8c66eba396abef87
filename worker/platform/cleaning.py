"""Copies of exceptions fit to be a `__cause__`: no URL, token, request or traceback goes with them."""

from typing import Any

from worker.platform.errors import ClientError
from worker.platform.redaction import clean

DEEPEST = 8  # links of a chain, levels of nested arguments


class CleanedError(Exception):
    """Stands for an exception that could not be copied; its text begins with that one's class name."""


def clean_exception(error: BaseException) -> BaseException:
    """A copy of `error`, of the same class where possible, with cleaned arguments and a cleaned chain.

    A `ClientError` is clean already: it comes back itself, with its chain cleaned.
    """
    return _clean(error, 0)


def _clean(error: BaseException, depth: int) -> BaseException:
    copy = error if isinstance(error, ClientError) else (_same_class(error, depth) or _stand_in(error))
    origin = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    explicit = error.__cause__ is not None
    cleaned = None if origin is None or depth >= DEEPEST else _clean(origin, depth + 1)
    copy.__cause__ = cleaned if explicit else None
    copy.__context__ = cleaned
    copy.__suppress_context__ = explicit or cleaned is None
    return copy


def _same_class(error: BaseException, depth: int) -> BaseException | None:
    args = tuple(_clean_argument(argument, depth) for argument in error.args)
    try:
        # Not through __init__: it may ask for a request or a response, the very things to leave behind.
        copy: BaseException = type(error).__new__(type(error), *args)
        copy.args = args
        vars(copy).clear()
        text = str(copy)
    except Exception:
        return None
    # Some classes make their text from what was left behind; such a copy would say less than a stand-in.
    return copy if text == clean(text) and (text or not str(error)) else None


def _stand_in(error: BaseException) -> BaseException:
    try:
        text = str(error)
    except Exception:
        text = ""
    name = type(error).__name__
    return CleanedError(clean(f"{name}: {text}" if text else name))


def _clean_argument(argument: Any, depth: int) -> Any:
    if isinstance(argument, str):
        return clean(argument)
    if argument is None or isinstance(argument, bool | int | float):
        return argument
    if isinstance(argument, BaseException) and depth < DEEPEST:
        return _clean(argument, depth + 1)
    if isinstance(argument, list | tuple) and depth < DEEPEST:
        cleaned = [_clean_argument(each, depth + 1) for each in argument]
        return cleaned if isinstance(argument, list) else tuple(cleaned)
    return f"<{type(argument).__name__}>"
