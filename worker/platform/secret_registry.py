"""The secrets that this process masks: kept while they are used, found in texts however many there are."""

import html
import json
import re
import threading
from base64 import b64decode
from collections import Counter, OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import quote, quote_plus, unquote, urlsplit

MASK = "***"

MIN_SECRET_CHARS = 6
"""Shorter secrets are not registered: ordinary words would be masked."""

MIN_PREFIX_CHARS = 4
"""The shortest beginning of a truncated secret that is masked: fewer characters may be ordinary text."""

MAX_SECRETS = 10_000
"""Most secrets that are kept beside those that are held; the longest unused is dropped for a new one."""


class _Index:
    """Finds which of many spellings a text has, in a time that does not grow with their number.

    A text is looked up at every `stride`-th position only, `length` characters at a time. So that no spelling
    lies between two look-ups, each is stored under its pieces at `stride` positions in a row. It has at least
    `length + stride - 1` characters.
    """

    def __init__(self, length: int, stride: int) -> None:
        self._length, self._stride = length, stride
        # The values are replaced and never changed, because other threads read them meanwhile.
        self._pieces: dict[str, tuple[str, ...]] = {}
        self._starts: dict[str, int] = {}

    def add(self, spelling: str) -> None:
        last = len(spelling) - self._length - self._stride + 1
        # Many tokens begin alike, and some end alike.
        start = min((last, last // 2, 0), key=lambda at: max(map(self._sharing, self._cut(spelling, at))))
        self._starts[spelling] = start
        for piece in self._cut(spelling, start):
            self._pieces[piece] = (*self._pieces.get(piece, ()), spelling)

    def remove(self, spelling: str) -> None:
        for piece in self._cut(spelling, self._starts.pop(spelling)):
            others = tuple(each for each in self._pieces[piece] if each != spelling)
            if others:
                self._pieces[piece] = others
            else:
                del self._pieces[piece]

    def find(self, text: str) -> list[str]:
        pieces, length = self._pieces, self._length
        if not pieces:
            return []
        looked_up = range(0, len(text) - length + 1, self._stride)
        hits = [found for at in looked_up if (found := pieces.get(text[at : at + length]))]
        return [each for each in set().union(*hits) if each in text] if hits else []

    def _cut(self, spelling: str, start: int) -> set[str]:
        return {spelling[at : at + self._length] for at in range(start, start + self._stride)}

    def _sharing(self, piece: str) -> int:
        return len(self._pieces.get(piece, ()))


LONG_CHARS = 16
"""Spellings from this length on are found with half as many look-ups a character as shorter ones."""


class SecretRegistry:
    """The secrets known to this process, in every encoding in which they may occur in text.

    Those of the settings and of living clients are held. Of the others, which agents, tenants and releases
    bring along, `MAX_SECRETS` are kept: those that were registered last, as they are at each use.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a client may be collected, and its secrets released, at any moment
        self._held: dict[str, int] = {}
        self._recent: OrderedDict[str, None] = OrderedDict()
        self._uses: Counter[str] = Counter()
        self._short, self._long = _Index(length=4, stride=3), _Index(length=8, stride=9)
        self._beginnings: dict[str, tuple[str, ...]] = {}
        self._longest = 0

    def add(self, secrets: Iterable[str], *, hold: bool = False) -> None:
        """Mask secrets from now on.

        Args:
            secrets: Those under 6 characters are ignored.
            hold: Until they are released as often as they were held.
        """
        for secret in map(str.strip, secrets):
            if len(secret) < MIN_SECRET_CHARS:
                continue
            with self._lock:
                if secret in self._held:
                    self._held[secret] += hold
                    continue
                if secret not in self._recent:
                    self._index(secret)
                self._recent.pop(secret, None)
                if hold:
                    self._held[secret] = 1
                else:
                    self._recent[secret] = None
                    self._drop_unused()

    def release(self, secrets: Iterable[str]) -> None:
        """Count one hold less; a secret without any is kept as others that were used.

        Args:
            secrets: Secrets that were held.
        """
        with self._lock:
            for secret in map(str.strip, secrets):
                if secret not in self._held:
                    continue
                self._held[secret] -= 1
                if not self._held[secret]:
                    del self._held[secret]
                    self._recent[secret] = None
            self._drop_unused()

    def mask(self, text: str) -> str:
        """Mask every secret in a text.

        Args:
            text: Any text.

        Returns:
            The masked text.
        """
        found = self._long.find(text) + self._short.find(text)
        # Longest first: a secret that contains another one is masked as a whole.
        for spelling in sorted(found, key=len, reverse=True):
            text = text.replace(spelling, MASK)
        return text

    def mask_partial(self, text: str) -> str:
        """Mask the beginning of a secret at the end of a text.

        Args:
            text: A text whose end was cut off.

        Returns:
            The masked text.
        """
        for start in range(max(0, len(text) - self._longest), len(text) - MIN_PREFIX_CHARS + 1):
            for spelling in self._beginnings.get(text[start : start + MIN_PREFIX_CHARS], ()):
                if len(text) - start < len(spelling) and spelling.startswith(text[start:]):
                    return text[:start] + MASK
        return text

    def _drop_unused(self) -> None:
        while len(self._recent) > MAX_SECRETS:
            dropped, _ = self._recent.popitem(last=False)
            for spelling in _spellings(dropped):
                self._uses[spelling] -= 1
                if self._uses[spelling] > 0:
                    continue
                del self._uses[spelling]
                self._index_of(spelling).remove(spelling)
                beginning = spelling[:MIN_PREFIX_CHARS]
                self._beginnings[beginning] = tuple(
                    each for each in self._beginnings[beginning] if each != spelling
                )

    def _index(self, secret: str) -> None:
        for spelling in _spellings(secret):
            self._uses[spelling] += 1
            if self._uses[spelling] == 1:
                self._index_of(spelling).add(spelling)
                beginning = spelling[:MIN_PREFIX_CHARS]
                self._beginnings[beginning] = (*self._beginnings.get(beginning, ()), spelling)
                self._longest = max(self._longest, len(spelling))

    def _index_of(self, spelling: str) -> _Index:
        return self._long if len(spelling) >= LONG_CHARS else self._short


_CREDENTIAL = re.compile(r"(?i)(token|bearer|basic|apikey|negotiate)\s+(\S+)")
"""The value of an `Authorization` header: a scheme, and what is secret."""


def secret_parts(text: str) -> list[str]:
    """Find what is a secret by itself in a text, and may be seen without the rest.

    Args:
        text: A secret, or the value of a setting.

    Returns:
        The token behind a scheme (`Bearer x`), and the password in it or in a URL.
    """
    found: list[str] = []
    if match := _CREDENTIAL.fullmatch(text.strip()):
        found.append(match[2])
        with suppress(ValueError):
            if match[1].lower() == "basic":
                found.append(b64decode(match[2], validate=True).decode().partition(":")[2])
    with suppress(ValueError):
        password = urlsplit(text.strip()).password or ""
        found += [password, unquote(password)]
    return [each for each in found if each]


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
