"""The values of settings: what each has to be, and the files in which they may stand.

`REDIS_URL_FILE` names a file with the value of `REDIS_URL`, as secrets are mounted.
"""

import os
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from shared.messages import Tenant
from shared.redis_url import read_redis_url
from shared.webhooks import signing_keys

FILE_SUFFIX: Final = "_FILE"
MAX_FILE_BYTES: Final = 64 * 1024

_BEGINNINGS: Final = (
    "SYNAPSE_",
    "WORKER_",
    "REDIS_URL",
    "CELERY_BROKER_URL",
    "PLUGINS_DIR",
    "RAY_ADDRESS",
    "OTEL_EXPORTER_OTLP_",
)
"""How settings begin, for a command that has no list of them."""


def setting_text(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """The text of the setting `REDIS_URL`, or of the file that `REDIS_URL_FILE` names; empty without both.

    Raises `ValueError`, whose text follows the setting's name, where both are set or the file cannot be used.
    """
    text, path = environ.get(name, "").strip(), environ.get(name + FILE_SUFFIX, "").strip()
    if not path:
        return text
    if text:
        raise ValueError(f"is set, and so is {name}{FILE_SUFFIX}: remove one of them")
    reason = f"cannot be read from the file that {name}{FILE_SUFFIX} names"
    try:
        # Not the whole of a file that somebody named by mistake.
        with Path(path).open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        text = content.decode("utf-8").strip()
    except OSError as error:
        raise ValueError(f"{reason}: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{reason}: it is not UTF-8") from None
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"{reason}: it is longer than 64 KB")
    if not text:
        raise ValueError(f"{reason}: it is empty")
    return text


def texts_in_files(
    names: Iterable[str], environ: Mapping[str, str] = os.environ
) -> dict[str, str | ValueError]:
    """The texts of those of these settings that stand in files; a mistake stands in place of the text."""
    found: dict[str, str | ValueError] = {}
    for name in names:
        if environ.get(name + FILE_SUFFIX, "").strip():
            try:
                found[name] = setting_text(name, environ)
            except ValueError as error:
                found[name] = error
    return found


def read_setting_files(environ: MutableMapping[str, str]) -> list[str]:
    """Put the text of each setting's file in place of its name, for a command that reads variables alone.

    Returns a line for each mistake.
    """
    stems = [name.removesuffix(FILE_SUFFIX) for name in environ if name.endswith(FILE_SUFFIX)]
    found = texts_in_files([stem for stem in stems if stem.startswith(_BEGINNINGS)], environ)
    for name, text in found.items():
        if isinstance(text, str):
            environ[name] = text
            del environ[name + FILE_SUFFIX]
    return [f"{name} {text}" for name, text in found.items() if isinstance(text, ValueError)]


def _http_url(value: str) -> str:
    value = value.strip()
    if not value.startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://")
    parts = split_url(value)
    if not parts.hostname:
        raise ValueError("names no host")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("must be a base URL alone: no user, password, query or fragment")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("holds characters that a URL cannot carry")
    return value.rstrip("/")


def _ray_address(value: str) -> str:
    host, _, port = value.strip().removeprefix("ray://").rpartition(":")
    if not host or "/" in host or not (port.isascii() and port.isdigit()) or not 0 < int(port) < 65536:
        raise ValueError("must be host:port (on a node of the cluster) or ray://host:port (anywhere else)")
    return value.strip()


def _token(value: SecretStr) -> SecretStr:
    # A secret that is mounted from a file often ends with a line break, which no HTTP header can carry.
    text = value.get_secret_value().strip()
    if not text:
        raise ValueError("is empty")
    if not text.isascii() or not text.isprintable():
        raise ValueError("holds characters that an HTTP header cannot carry")
    return SecretStr(text)


def _webhook_url(value: str) -> str:
    # It stays as it is: a path with a slash behind it is another one, and a receiver may want a query.
    base, _, query = value.strip().partition("?")
    _http_url(base)
    if query:
        _http_url(f"{base}/{query}")
    return value.strip()


def _signing_secret(value: SecretStr) -> SecretStr:
    if not signing_keys(value.get_secret_value()):
        raise ValueError("is empty")
    return value


def stripped(value: object) -> object:
    """A text without the spaces around it."""
    return value.strip() if isinstance(value, str) else value


def split_url(url: str) -> SplitResult:
    """The parts of a URL, also its port; raises `ValueError` for what is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("is not a URL") from None
    return parts


def header_secrets(headers: str) -> list[str]:
    """The values of OTEL_EXPORTER_OTLP_HEADERS, each encoded as in a URL."""
    values = [unquote(each.partition("=")[2]).strip() for each in headers.split(",")]
    # `Authorization=Bearer …` is not the only place in which the token may be seen.
    return values + [value.split()[-1] for value in values if value]


_PASSWORD_OPTIONS = ("password", "sentinel_password", "ssl_password")


def url_passwords(url: str) -> list[str]:
    """The passwords in the URL of a Redis or of a broker; raises `ValueError` for what is no URL."""
    parts = split_url(url)
    query = parse_qs(parts.query)
    in_query = [value for name in _PASSWORD_OPTIONS for value in query.get(name, [])]
    return [*in_query, unquote(parts.password)] if parts.password else in_query


MIN_REDIS_CONNECTIONS = 20
"""Of `max_connections`: a worker process holds about so many, some of them for as long as it lives."""


def usable_redis(url: str) -> str:
    """A URL of Redis with enough connections; raises `ValueError` for another."""
    if read_redis_url(url).options.get("max_connections", MIN_REDIS_CONNECTIONS) < MIN_REDIS_CONNECTIONS:
        raise ValueError(f"has max_connections below {MIN_REDIS_CONNECTIONS}, which a worker process needs")
    return url


HttpUrl = Annotated[str, AfterValidator(_http_url)]
RayAddress = Annotated[str, AfterValidator(_ray_address)]
TenantHeader = Annotated[Tenant, BeforeValidator(stripped)]
Token = Annotated[SecretStr, AfterValidator(_token)]
WebhookUrl = Annotated[str, AfterValidator(_webhook_url)]
SigningSecret = Annotated[SecretStr, AfterValidator(_signing_secret)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
