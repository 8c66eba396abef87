"""Regular expressions that find secrets, URLs and terminal codes in text.

Text comes from other people's programs and may be a megabyte on one line, so each expression is linear: a
match starts only at a literal word, and what it scanned it also consumes. Tests hold that with 1 MB strings.
"""

import html
import json
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "***"

_SCHEME = r"(?:(?:token|bearer|basic|apikey|negotiate)[ \t]+)?"
# Schemes whose value has several parts: all of the line belongs to them.
_MULTI_PART_SCHEME = r"(?:digest|hawk|oauth|aws4-hmac-sha256)[ \t][^\r\n]*"
_UNQUOTED_CHAR = r"[^\s\"'&,;<>()\[\]{}]"

# A quoted value ends at its own quote, a value in JSON within a string (`\"x\"`) at the same number of
# backslashes; one that never ends is masked to the end of its line.
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
    # A tokenizer prints pad_token= and its like; those are no secrets.
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
"""`Invalid token: 5d41402a…`; short values (`token: 17`) are a tokenizer's."""

_URL_SIGNATURE = re.compile(r"(?i)(?P<name>[?&](?:sig|signature|key))(?P<sep>=)(?P<bare>[^\s\"'&<>]+)")
"""The signature of a URL that whoever holds it may use."""

_BARE_CREDENTIAL = re.compile(
    r"\b(?P<scheme>Bearer|Token)[ \t]{1,8}(?=[A-Za-z._~+/=-]{0,200}[0-9])[A-Za-z0-9._~+/=-]{16,}"
)
"""`Bearer eyJ…` that stands without the name of its header."""

_URL_USERINFO = re.compile(r"(?<=://)[^\s/?#\"'<>]*@")
"""`user:password@` of a URL."""

_ANSI = re.compile(r"\x1b(?:\[[0-9;:?]{0,64}[ -/]{0,8}[@-~]|\][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)?|[@-_])?")
_URL = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z0-9+.-]++://[^\s\"'<>]*")
_QUERY = re.compile(r"\?[^\s\"'<>?=]*=[^\s\"'<>]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

_SECRET_KEY = re.compile(
    rf"(?i)(?:.*[-_.])?(?:{_NAMES}|authorization|credentials?|synapse-(?:access-token|agent|user|tenant))"
)
"""Keys of a mapping whose value is a secret whatever it looks like."""


_TRIGGER_WORDS = (
    "authorization", "synapse", "token", "bearer", "passw", "passphrase", "secret", "key", "sig",
    "credential", "://",
)  # fmt: skip
_FOLDS_TO_ASCII = "\u017f\u0131\u0130\u212a"
"""Characters that count as ASCII letters where case is ignored, and that `lower` leaves alone."""


def _may_contain_secret(text: str) -> bool:
    """Whether one of the expressions might match: each needs one of these words. Quick, for lines of logs."""
    lower = text.lower()
    for word in _TRIGGER_WORDS:
        if word in lower:
            return True
    return not text.isascii() and any(odd in text for odd in _FOLDS_TO_ASCII)


def _mask_match(match: re.Match[str]) -> str:
    """Put the mask in the place of a found value, keep its name, its quote and what follows."""
    groups = match.groupdict()
    opening = groups.get("nested") or groups.get("quote") or ""
    return f"{groups['name']}{groups['sep']}{opening}{MASK}"


MIN_SECRET_CHARS = 6  # shorter ones would mask ordinary words
MIN_PREFIX_CHARS = 4  # of a secret that was cut through; fewer characters are anybody's
MAX_DEPTH = 8  # levels of nesting looked into; what lies deeper is shown as masked text


class _Registry:
    """The secrets known to this process, in every spelling in which they may turn up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spellings: tuple[str, ...] = ()

    def add(self, secrets: Iterable[str]) -> None:
        found = {spelling for secret in secrets for spelling in _spellings(secret)}
        if found.issubset(self._spellings):
            return
        with self._lock:
            # Longest first: a secret that holds another one is masked whole.
            self._spellings = tuple(sorted(found.union(self._spellings), key=len, reverse=True))

    def mask_cut(self, text: str) -> str:
        for spelling in self._spellings:
            longest = min(len(spelling) - 1, len(text))
            for length in range(longest, MIN_PREFIX_CHARS - 1, -1):
                if text.endswith(spelling[:length]):
                    return text[: len(text) - length] + MASK
        return text

    def mask(self, text: str) -> str:
        for spelling in self._spellings:
            if spelling in text:
                text = text.replace(spelling, MASK)
        return text


_registry = _Registry()


def register_secrets(secrets: Iterable[str]) -> None:
    """Mask these from now on, everywhere in this process. Those under 6 characters are ignored."""
    _registry.add(secrets)


def register_settings(settings: Mapping[str, str]) -> None:
    """Mask the values of settings (a release's `env`) whose name says that they are secret."""
    register_secrets(value for name, value in settings.items() if _SECRET_KEY.fullmatch(name[-100:]))


def contains_secret(text: str) -> bool:
    """Whether one of this process's own secrets is in `text`: somebody sent back what we sent."""
    return _registry.mask(text) != text


def mask_secrets(value: Any) -> Any:
    """A JSON value with this process's own secrets masked; the rest is left as it is."""
    if isinstance(value, str):
        return _registry.mask(value)
    if isinstance(value, list):
        return [mask_secrets(each) for each in value]
    if isinstance(value, dict):
        return {mask_secrets(key): mask_secrets(each) for key, each in value.items()}
    return value


def redact(text: str) -> str:
    """`text` with every secret masked and the rest left as it is."""
    text = _registry.mask(text)
    if not _may_contain_secret(text):
        return _encodable(text)
    for pattern in (_HEADER, _ASSIGNMENT, _PROSE, _URL_SIGNATURE):
        text = pattern.sub(_mask_match, text)
    text = _BARE_CREDENTIAL.sub(rf"\g<scheme> {MASK}", text)
    return _encodable(_URL_USERINFO.sub(f"{MASK}@", text))


def mask_partial_secret(text: str) -> str:
    """Text that was cut off at its end, where the beginning of one of this process's secrets may be left.

    To be called before it is redacted: what is left of the secret is none any more.
    """
    return _registry.mask_cut(text)


def clean(text: str) -> str:
    """`text` fit to be shown to users: one line without secrets, URLs, query strings and terminal codes."""
    text = redact(_ANSI.sub("", text))
    text = _QUERY.sub("", _URL.sub("<url>", text))
    return _CONTROL.sub(" ", text).strip()


def clean_value(value: Any) -> Any:
    """A JSON-like value fit to be shown to users: as `redact_value`, with its strings cleaned."""
    return redact_value(value, text=clean)


def redact_value(value: Any, depth: int = 0, text: Callable[[str], str] = redact) -> Any:
    """A JSON-like value with its strings redacted; what stands under a secret's name is masked whole.

    `text` is what a string becomes.
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
    """A processor for structlog: no field of a log line shows a secret, wherever in the row it stands."""
    # Rendered here, because a renderer further on would do it behind our back, perhaps with local variables.
    if text := _exception_text(event_dict.pop("exc_info", None)):
        event_dict["exception"] = text
    for key in list(event_dict):
        event_dict[key] = _redact_item(key, event_dict[key], 0)
    return event_dict


def _encodable(text: str) -> str:
    """Half of a surrogate pair, which JSON and file names may hold, is in no text that can be sent on."""
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


def _spellings(secret: str) -> set[str]:
    secret = secret.strip()
    if len(secret) < MIN_SECRET_CHARS:
        return set()
    quoted = {quote(secret, safe=""), quote(secret), quote_plus(secret)}
    lower = {_lower_hex(each) for each in quoted}
    escaped = {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]}
    return {secret, html.escape(secret), *quoted, *lower, *escaped}


def _lower_hex(quoted: str) -> str:
    first, *rest = quoted.split("%")
    return "%".join([first, *(part[:2].lower() + part[2:] for part in rest)])
