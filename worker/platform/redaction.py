"""Masks secrets in texts, JSON values and log events; the contract forbids them in any output of the worker.

The texts are other programs' output and may have a megabyte on one line. So every regular expression takes
linear time: a match starts at a literal word only, and consumes what it scanned. Tests check that with 1 MB.
"""

import re
import sys
import traceback
import weakref
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

from worker.platform.secret_registry import MASK, SecretRegistry, secret_parts

_SCHEME = r"(?:(?:token|bearer|basic|apikey|negotiate)[ \t]+)?"
# Schemes whose value has several parts: the rest of the line belongs to it.
_MULTI_PART_SCHEME = r"(?:digest|hawk|oauth|aws4-hmac-sha256)[ \t][^\r\n]*"
_UNQUOTED_CHAR = r"[^\s\"'&,;<>()\[\]{}]"

# A quoted value ends at its own quote, one in JSON within a string (`\"x\"`) at a quote with as many
# backslashes. A value whose quote is never closed is masked to the end of the line.
_VALUE = (
    r"(?:(?P<nested>\\{1,7}[\"'])(?:(?!(?P=nested))[^\r\n])*"
    r"|[bru]?(?P<quote>[\"'])(?:\\[^\r\n]|(?!(?P=quote))[^\\\r\n])*"
    rf"|(?P<bare>{_MULTI_PART_SCHEME}|{_SCHEME}{_UNQUOTED_CHAR}+))"
)
_END_OF_NAME = r"(?:\\{0,7}[\"'])?[ \t]{0,8}"

_HEADER = re.compile(
    rf"(?i)(?P<name>(?:proxy-)?authorization|synapse[-_](?:access[-_]token|agent|user|tenant))"
    rf"(?P<sep>{_END_OF_NAME}[:=][ \t]{{0,8}}[\[(]?|[\"'],[ \t]{{0,8}}){_VALUE}"
)
"""`Authorization: Token x`, also in a repr (`'Authorization': 'x'`, `(b'authorization', b'x')`)."""

_NAMES = (
    # The pad_token= and so on that a tokenizer prints are no secrets.
    r"(?<!pad_)(?<!eos_)(?<!bos_)(?<!unk_)(?<!sep_)(?<!cls_)(?<!mask_)(?:token"
    r"|passwords?|passwd|passphrase|secret|api[-_]?key|access[-_]?key(?:[-_]?id)?|private[-_]?key|secret[-_]?key"
    r"|x-(?:amz|goog)-(?:signature|credential))"
)
_ASSIGNMENT = re.compile(
    rf"(?i)(?P<name>{_NAMES})"
    rf"(?P<sep>{_END_OF_NAME}=[ \t]{{0,8}}|\\{{0,7}}[\"'][ \t]{{0,8}}:[ \t]{{0,8}}[\[(]?){_VALUE}"
)
"""`token=x`, `access_token='x'`, `"password": "x"`."""

_PROSE = re.compile(rf"(?i)(?P<name>{_NAMES})(?P<sep>:[ \t]{{0,8}})(?P<bare>{_SCHEME}{_UNQUOTED_CHAR}{{6,}})")
"""`Invalid token: 5d41402a…`; short values (`token: 17`) are a tokenizer's output."""

_URL_SIGNATURE = re.compile(r"(?i)(?P<name>[?&](?:sig|signature|key))(?P<sep>=)(?P<bare>[^\s\"'&<>]+)")
"""The signature of a presigned URL."""

_BARE_CREDENTIAL = re.compile(
    r"\b(?P<scheme>Bearer|Token)[ \t]{1,8}(?=[A-Za-z._~+/=-]{0,200}[0-9])[A-Za-z0-9._~+/=-]{16,}"
)
"""`Bearer eyJ…` without the name of a header."""

_URL_USERINFO = re.compile(r"(?<=://)[^\s/?#\"'<>]*@")
"""`user:password@` of a URL."""

_ANSI = re.compile(r"\x1b(?:\[[0-9;:?]{0,64}[ -/]{0,8}[@-~]|\][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)?|[@-_])?")
_URL = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z0-9+.-]++://[^\s\"'<>]*")
_QUERY = re.compile(r"\?[^\s\"'<>?=]*=[^\s\"'<>]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

_SECRET_KEY = re.compile(
    rf"(?i)(?:.*[-_.])?(?:{_NAMES}|authorization|credentials?|synapse-(?:access-token|agent|user|tenant))"
)
"""Keys of a mapping whose value is always a secret."""


_TRIGGER_WORDS = (
    "authorization", "synapse", "token", "bearer", "passw", "passphrase", "secret", "key", "sig",
    "credential", "://",
)  # fmt: skip
_FOLDS_TO_ASCII = "\u017f\u0131\u0130\u212a"
"""Characters that a case-insensitive expression matches with ASCII letters and `lower` does not convert."""


def _may_contain_secret(text: str) -> bool:
    """Whether any expression could match: each needs one of these words. It is fast, for lines of logs."""
    lower = text.lower()
    for word in _TRIGGER_WORDS:
        if word in lower:
            return True
    return not text.isascii() and any(character in text for character in _FOLDS_TO_ASCII)


def _mask_match(match: re.Match[str]) -> str:
    """Replace the found value by the mask; keep its name and its opening quote."""
    groups = match.groupdict()
    opening = groups.get("nested") or groups.get("quote") or ""
    return f"{groups['name']}{groups['sep']}{opening}{MASK}"


MAX_DEPTH = 8
"""Levels of nesting that are walked through; a deeper value is replaced by its masked `repr`."""


_registry = SecretRegistry()


def register_secrets(secrets: Iterable[str], *, owner: object = None, forever: bool = False) -> None:
    """Mask these secrets in this process from now on, while they are in use.

    Of those that no object uses, the process remembers the 10,000 that were registered last.

    Args:
        secrets: Tokens, passwords and so on, also as a part of a credential (`Bearer x`) or of a URL, where
            the part is masked by itself, too. Those under 6 characters are ignored.
        owner: The object that uses them: they are masked for as long as it exists.
        forever: They are masked until the process ends.
    """
    found = [part for secret in secrets for part in (secret, *secret_parts(secret))]
    _registry.add(found, hold=forever or owner is not None)
    if owner is not None:
        weakref.finalize(owner, _registry.release, found).atexit = False


def register_settings(settings: Mapping[str, str]) -> None:
    """Mask the values of the settings whose name marks them as secret, and passwords in others.

    Args:
        settings: Names and values, such as the `env` of a plugin release.
    """
    for name, value in settings.items():
        register_secrets([value] if _SECRET_KEY.fullmatch(name[-100:]) else secret_parts(value))


def contains_secret(text: str) -> bool:
    """Tell whether a text contains a registered secret, as when a service echoes a request.

    Args:
        text: Any text.

    Returns:
        Whether it does.
    """
    return _registry.mask(text) != text


def mask_secrets(value: Any) -> Any:
    """Mask the registered secrets in a JSON value, and nothing else.

    Args:
        value: A JSON value.

    Returns:
        A copy of it, with keys and strings masked.
    """
    if isinstance(value, str):
        return _registry.mask(value)
    if isinstance(value, list):
        return [mask_secrets(each) for each in value]
    if isinstance(value, dict):
        return {mask_secrets(key): mask_secrets(each) for key, each in value.items()}
    return value


def redact(text: str) -> str:
    """Mask registered secrets and whatever looks like one, such as `Authorization` and `token=` values.

    For text whose other content must not change, such as a job's log (the contract, on relayed logs).

    Args:
        text: Any text.

    Returns:
        The masked text, which UTF-8 can encode.
    """
    text = _registry.mask(text)
    if not _may_contain_secret(text):
        return _encodable(text)
    for pattern in (_HEADER, _ASSIGNMENT, _PROSE, _URL_SIGNATURE):
        text = pattern.sub(_mask_match, text)
    text = _BARE_CREDENTIAL.sub(rf"\g<scheme> {MASK}", text)
    return _encodable(_URL_USERINFO.sub(f"{MASK}@", text))


def mask_partial_secret(text: str) -> str:
    """Mask the beginning of a registered secret at the end of a truncated text.

    Call it before `redact`, which does not recognize a truncated secret.

    Args:
        text: A text whose end was cut off.

    Returns:
        The text, with the mask in place of the partial secret.
    """
    return _registry.mask_partial(text)


def clean(text: str) -> str:
    """Make a text presentable to users: one line without secrets, URLs, query strings and terminal codes.

    Args:
        text: Any text.

    Returns:
        The clean text.
    """
    text = redact(_ANSI.sub("", text))
    text = _QUERY.sub("", _URL.sub("<url>", text))
    return _CONTROL.sub(" ", text).strip()


def clean_value(value: Any) -> Any:
    """Make a value presentable to users: like `redact_value`, with every string cleaned.

    Args:
        value: A JSON-like value.

    Returns:
        A copy of it.
    """
    return redact_value(value, text=clean)


def redact_value(value: Any, depth: int = 0, text: Callable[[str], str] = redact) -> Any:
    """Redact every string of a value; the value of a key that names a secret is masked as a whole.

    Args:
        value: A JSON-like value. Another object is replaced by its redacted `repr` if that shows a secret.
        depth: How deeply the value is nested in another one, which `MAX_DEPTH` limits.
        text: What is done with a string.

    Returns:
        A copy of the value.
    """
    if isinstance(value, str):
        return text(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth < MAX_DEPTH:
        if isinstance(value, Mapping):
            return {
                _redact_key(key, text): _redact_item(key, each, depth + 1, text)
                for key, each in value.items()
            }
        if isinstance(value, list | tuple):
            redacted = [redact_value(each, depth + 1, text) for each in value]
            return redacted if isinstance(value, list) else tuple(redacted)
    if isinstance(value, BaseException):
        return text(f"{type(value).__name__}: {value}")
    shown = repr(value)
    redacted_text = text(shown)
    return value if shown == redacted_text else redacted_text


def redact_event(
    logger: object,  # noqa: ARG001 - structlog passes it
    name: str,  # noqa: ARG001 - structlog passes it
    event_dict: MutableMapping[str, Any],
) -> MutableMapping[str, Any]:
    """Redact every field of a log event: a processor of structlog, for any place in the chain.

    Args:
        logger: Unused.
        name: Unused.
        event_dict: The event, changed in place. An exception in it becomes text.

    Returns:
        The event.
    """
    # Rendered here: a later processor would render it unredacted, perhaps with local variables.
    if text := _exception_text(event_dict.pop("exc_info", None)):
        event_dict["exception"] = text
    for key in list(event_dict):
        event_dict[key] = _redact_item(key, event_dict[key], 0)
    return event_dict


def _encodable(text: str) -> str:
    """Escape lone surrogates, which JSON and file names may contain and UTF-8 cannot encode."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _redact_item(key: object, value: Any, depth: int, text: Callable[[str], str] = redact) -> Any:
    if isinstance(key, str) and value is not None and _SECRET_KEY.fullmatch(key[-100:]):
        return MASK
    return redact_value(value, depth, text)


def _redact_key(key: Any, text: Callable[[str], str]) -> Any:
    return text(key) if isinstance(key, str) else key


def _exception_text(exc_info: Any) -> str:
    if isinstance(exc_info, tuple):
        exc_info = exc_info[1]
    exception = exc_info if isinstance(exc_info, BaseException) else sys.exception() if exc_info else None
    return "".join(traceback.format_exception(exception)) if exception is not None else ""
