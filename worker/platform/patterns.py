"""Regular expressions that find secrets, URLs and terminal codes in text.

Text comes from other people's programs and may be a megabyte on one line, so each expression is linear: a
match starts only at a literal word, and what it scanned it also consumes. Tests hold that with 1 MB strings.
"""

import re

MASK = "***"

_SCHEME = r"(?:(?:token|bearer|basic|apikey|negotiate)[ \t]+)?"
# Schemes whose value has several parts: all of the line belongs to them.
_PARTED = r"(?:digest|hawk|oauth|aws4-hmac-sha256)[ \t][^\r\n]*"
_BARE = r"[^\s\"'&,;<>()\[\]{}]"

# A quoted value ends at its own quote, a value in JSON within a string (`\"x\"`) at the same number of
# backslashes; one that never ends is masked to the end of its line.
_VALUE = (
    r"(?:(?P<nested>\\{1,7}[\"'])(?:(?!(?P=nested))[^\r\n])*"
    r"|[bru]?(?P<quote>[\"'])(?:\\[^\r\n]|(?!(?P=quote))[^\\\r\n])*"
    rf"|(?P<bare>{_PARTED}|{_SCHEME}{_BARE}+))"
)
_END_OF_NAME = r"(?:\\{0,7}[\"'])?[ \t]{0,8}"

HEADERS = re.compile(
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
NAMED = re.compile(
    rf"(?i)(?P<name>{_NAMES})"
    rf"(?P<sep>{_END_OF_NAME}=[ \t]{{0,8}}|\\{{0,7}}[\"'][ \t]{{0,8}}:[ \t]{{0,8}}[\[(]?){_VALUE}"
)
"""`token=x`, `access_token='x'`, `"password": "x"`."""

SPOKEN = re.compile(rf"(?i)(?P<name>{_NAMES})(?P<sep>:[ \t]{{0,8}})(?P<bare>{_SCHEME}{_BARE}{{6,}})")
"""`Invalid token: 5d41402a…`; short values (`token: 17`) are a tokenizer's."""

SIGNED = re.compile(r"(?i)(?P<name>[?&](?:sig|signature|key))(?P<sep>=)(?P<bare>[^\s\"'&<>]+)")
"""The signature of a URL that whoever holds it may use."""

CREDENTIALS = re.compile(
    r"\b(?P<scheme>Bearer|Token)[ \t]{1,8}(?=[A-Za-z._~+/=-]{0,200}[0-9])[A-Za-z0-9._~+/=-]{16,}"
)
"""`Bearer eyJ…` that stands without the name of its header."""

USERINFO = re.compile(r"(?<=://)[^\s/?#\"'<>]*@")
"""`user:password@` of a URL."""

ANSI = re.compile(r"\x1b(?:\[[0-9;:?]{0,64}[ -/]{0,8}[@-~]|\][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)?|[@-_])?")
URL = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z0-9+.-]++://[^\s\"'<>]*")
QUERY = re.compile(r"\?[^\s\"'<>?=]*=[^\s\"'<>]*")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

SECRET_KEY = re.compile(
    rf"(?i)(?:.*[-_.])?(?:{_NAMES}|authorization|credentials?|synapse-(?:access-token|agent|user|tenant))"
)
"""Keys of a mapping whose value is a secret whatever it looks like."""


_WORDS = (
    "authorization", "synapse", "token", "bearer", "passw", "passphrase", "secret", "key", "sig",
    "credential", "://",
)  # fmt: skip
_FOLDED = "\u017f\u0131\u0130\u212a"
"""Characters that count as ASCII letters where case is ignored, and that `lower` leaves alone."""


def may_hold_secret(text: str) -> bool:
    """Whether one of the expressions might match: each needs one of these words. Quick, for lines of logs."""
    lower = text.lower()
    for word in _WORDS:
        if word in lower:
            return True
    return not text.isascii() and any(odd in text for odd in _FOLDED)


def mask_value(match: re.Match[str]) -> str:
    """Put the mask in the place of a found value, keep its name, its quote and what follows."""
    groups = match.groupdict()
    opening = groups.get("nested") or groups.get("quote") or ""
    return f"{groups['name']}{groups['sep']}{opening}{MASK}"
