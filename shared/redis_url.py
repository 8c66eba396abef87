"""The URL of a Redis, read alike by all clients: the worker's own, the broker's transport, the publisher."""

import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

from redis import ConnectionPool, Redis
from redis.asyncio import BlockingConnectionPool as AsyncBlockingConnectionPool
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.backoff import NoBackoff
from redis.connection import URL_QUERY_ARGUMENT_PARSERS, parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from shared.redis_connections import CONNECTION_CLASSES
from shared.redis_pools import AsyncPool, AsyncSentinelPool, BlockingPool, Pool, SentinelPool

REDIS_SCHEMES: Final = ("redis://", "rediss://", "unix://", "redis+socket://", "sentinel://")

SENTINEL_PORT: Final = 26379

_OBJECTS: Final = frozenset(
    ("retry", "retry_on_error", "credential_provider", "parser_class", "redis_connect_func", "driver_info")
)
"""Options that redis-py takes as Python objects, and from a URL as texts that fail when they are needed."""

_POSITIVE: Final = ("socket_timeout", "socket_connect_timeout", "socket_read_size", "max_connections")

_UNREADABLE: Final = "is not a URL that the Redis client can read"

_ESCAPES: Final = ": in a user or password, characters such as # / ? [ are written as %23 %2F %3F %5B"

_SENTINEL_OPTION_PREFIX: Final = "sentinel_"


def _reading_all(options: dict[str, Any]) -> dict[str, Any]:
    """With a text for whatever Redis answers, where answers are text.

    Else a value that is damaged, or somebody else's, would be an error of the client at each look at it. What
    is no UTF-8 stands in the text as lone surrogates, of which the same bytes are made in a command.
    """
    return {"encoding_errors": "surrogateescape", **options} if options.get("decode_responses") else options


@dataclass(frozen=True)
class RedisUrl:
    """A Redis, as its URL names it. Its text shows no secret.

    Attributes:
        kind: `redis`, `rediss`, `unix`, `sentinel`, or `sentinels` for Sentinel with TLS.
        options: What a connection is made with: address, database, credentials and redis-py's options.
        sentinels: Host and port of each Sentinel.
        master_name: The name by which the Sentinels know the master.
        sentinel_options: What a connection to a Sentinel is made with.
        global_keyprefix: Begins every key and channel of the queues, as the option of Celery's transport.
    """

    kind: str
    options: Mapping[str, Any] = field(repr=False)
    sentinels: tuple[tuple[str, int], ...] = ()
    master_name: str | None = None
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    global_keyprefix: str = ""

    def client(self, **defaults: Any) -> Redis:
        """Make a client; nothing is connected yet.

        Args:
            defaults: Options of redis-py's client, where the URL has none.

        Returns:
            A client that closes its connections when it is closed.
        """
        client = Redis(connection_pool=self.pool(**defaults))
        client.auto_close_connection_pool = True
        return client

    def pool(self, *, needed: Mapping[str, Any] | None = None, **defaults: Any) -> ConnectionPool:
        """Make a pool of connections.

        Args:
            needed: Options that win over the URL's, because the caller works with no others.
            defaults: Options of redis-py's connections and pools, where the URL has none.

        Returns:
            A pool whose connections go to the master.
        """
        connection_class = CONNECTION_CLASSES[self.kind][0]
        defaults = _reading_all(defaults)
        options = {"connection_class": connection_class, **defaults, **self.options, **(needed or {})}
        if not self.sentinels:
            # With a limit, threads wait for a free connection. They would get an error at once otherwise.
            return (BlockingPool if "max_connections" in options else Pool)(**options)
        # Without retries, the next Sentinel is asked at once when one does not answer.
        kwargs = {**self._options_of_sentinels(options), "retry": Retry(NoBackoff(), 0)}
        sentinel = Sentinel(self.sentinels, sentinel_kwargs=kwargs)
        return SentinelPool(self.master_name, sentinel, **options)

    def async_pool(self, **defaults: Any) -> AsyncBlockingConnectionPool:
        """Make a pool for an event loop, whose callers wait for a free connection.

        Args:
            defaults: Options of redis-py's connections and pools, where the URL has none.

        Returns:
            A pool whose connections go to the master.
        """
        defaults = {"connection_class": CONNECTION_CLASSES[self.kind][1], **_reading_all(defaults)}
        options = {**defaults, **self.options}
        if not self.sentinels:
            return AsyncPool(**options)
        kwargs = {**self._options_of_sentinels(options), "retry": AsyncRetry(NoBackoff(), 0)}
        sentinel = AsyncSentinel(self.sentinels, sentinel_kwargs=kwargs)
        return AsyncSentinelPool(self.master_name, sentinel, **options)

    def _options_of_sentinels(self, options: Mapping[str, Any]) -> dict[str, Any]:
        shared = {
            name: value
            for name, value in options.items()
            if name.startswith(("socket_", "ssl_")) and name != "socket_read_size"
        }
        if self.kind == "sentinels":
            shared["ssl"] = True
        return {**shared, **self.sentinel_options}

    @property
    def broker_url(self) -> str:
        """The address in kombu's form, without what its transport has from `transport_options`."""
        options = self.options
        password = quote(options.get("password", ""), safe="")
        user = quote(options.get("username", ""), safe="")
        login = f"{user}:{password}@" if user or password else ""
        database = options.get("db", 0)
        if self.kind == "unix":
            return f"redis+socket://{login}{options['path']}?virtual_host={database}"
        if self.sentinels:
            host, port = self.sentinels[0]
            return f"sentinel://{login}{_in_url(host)}:{port}/{database}"
        host, port = options.get("host", "localhost"), options.get("port", 6379)
        return f"{self.kind}://{login}{_in_url(host)}:{port}/{database}"

    @property
    def transport_options(self) -> dict[str, Any]:
        """What Celery's setting `broker_transport_options` is to hold; Flower reads the documented ones."""
        found: dict[str, Any] = {"redis_url": self}
        if self.global_keyprefix:
            found["global_keyprefix"] = self.global_keyprefix
        if self.sentinels:
            found["master_name"] = self.master_name
            found["sentinel_kwargs"] = dict(self.sentinel_options)
        return found

    @property
    def tls_options(self) -> dict[str, Any] | None:
        """What Celery's setting `broker_use_ssl` is to hold, for monitors; None without TLS."""
        if self.kind not in ("rediss", "sentinels"):
            return None
        found = {name: value for name, value in self.options.items() if name.startswith("ssl_")}
        needed = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL}
        return {**found, "ssl_cert_reqs": needed.get(found.get("ssl_cert_reqs", ""), ssl.CERT_REQUIRED)}


def is_redis_url(url: str) -> bool:
    """Tell whether a broker's URL is that of a Redis.

    Args:
        url: A URL; several of one Redis are separated by `;`.

    Returns:
        Whether `read_redis_url` reads its scheme.
    """
    return url.startswith(REDIS_SCHEMES)


def read_redis_url(
    url: str, *, master_name: str | None = None, sentinel_kwargs: Mapping[str, Any] | None = None
) -> RedisUrl:
    """Read the URL of a Redis.

    Args:
        url: `redis://`, `rediss://` or `unix://` with any option that redis-py accepts in a URL, Celery's
            `redis+socket://`, or `sentinel://host:port;sentinel://host:port/0?master_name=mymaster`. The
            credentials in it are Redis's; those of the Sentinels are the options `sentinel_username` and
            `sentinel_password`, and `ssl=true` means TLS for both. `global_keyprefix` is an option of all.
            `decode_responses` is ignored: each client decides it.
        master_name: Of Sentinels whose URL has none, as Celery's `broker_transport_options` give it.
        sentinel_kwargs: Options of the connections to the Sentinels, likewise; the URL's win over them.

    Returns:
        What clients are made from.

    Raises:
        ValueError: The URL cannot be read; the text says why and holds no secret.
    """
    if url.startswith("sentinel://"):
        return _read_sentinels(url, master_name, sentinel_kwargs or {})
    if ";" in url.partition("?")[0]:
        raise ValueError("names several servers, which only sentinel:// can")
    options = _options(url.replace("redis+socket://", "unix://", 1))
    kind = "unix" if "path" in options else "rediss" if url.startswith("rediss://") else "redis"
    if "master_name" in options:
        raise ValueError("has a master_name, which only sentinel:// has")
    if "virtual_host" in options:
        options["db"] = _number(options.pop("virtual_host"))
    return _checked(RedisUrl(kind, options, global_keyprefix=options.pop("global_keyprefix", "")))


def _read_sentinels(url: str, master_name: str | None, sentinel_kwargs: Mapping[str, Any]) -> RedisUrl:
    sentinels: list[tuple[str, int]] = []
    options: dict[str, Any] = {}
    for part in url.split(";"):
        if not part.startswith("sentinel://"):
            raise ValueError("must name each Sentinel as sentinel://host:port, separated by ;")
        found = _options(part.replace("sentinel://", "redis://", 1))
        sentinels.append((found.pop("host", "localhost"), found.pop("port", SENTINEL_PORT)))
        options = {**found, **options}
    master_name = options.pop("master_name", master_name)
    if not master_name:
        raise ValueError("names no master: add ?master_name=… as in the Sentinels' configuration")
    tls = _is_yes(options.pop("ssl", ""))
    of_sentinels = dict(sentinel_kwargs)
    of_sentinels |= {
        name.removeprefix(_SENTINEL_OPTION_PREFIX): _value_for_sentinels(name, options.pop(name))
        for name in list(options)
        if name.startswith(_SENTINEL_OPTION_PREFIX)
    }
    keyprefix = options.pop("global_keyprefix", "")
    kind = "sentinels" if tls else "sentinel"
    return _checked(RedisUrl(kind, options, tuple(sentinels), master_name, of_sentinels, keyprefix))


def _value_for_sentinels(name: str, text: str) -> Any:
    """The value of an option, whose name redis-py's own reader of URLs does not know with its prefix."""
    name_of_redis_py = name.removeprefix(_SENTINEL_OPTION_PREFIX)
    parse = _is_yes if name_of_redis_py == "ssl" else URL_QUERY_ARGUMENT_PARSERS.get(name_of_redis_py, str)
    try:
        return parse(text)
    except (TypeError, ValueError):
        raise ValueError(f"has an option whose value cannot be read: {name!r}") from None


def _is_yes(text: str) -> bool:
    return text.lower() in ("true", "1", "yes")


def _options(url: str) -> dict[str, Any]:
    try:
        found = parse_url(url)
    except ValueError as error:
        name = re.search("Invalid value for '([a-z_]+)'", str(error))
        if name:
            raise ValueError(f"has an option whose value cannot be read: {name[1]!r}") from None
        raise ValueError(f"{_UNREADABLE}{_ESCAPES if '@' in url else ''}") from None
    _check_database(url)
    _check_values(found)
    found.pop("connection_class", None)
    # Whether answers are text is decided by the code that reads them.
    found.pop("decode_responses", None)
    if "ssl_cert_reqs" in found:
        # Celery's spelling is CERT_REQUIRED.
        found["ssl_cert_reqs"] = found["ssl_cert_reqs"].lower().removeprefix("cert_")
    return dict(found)


def _check_database(url: str) -> None:
    """Reject a path that redis-py takes for database 0, or passes over for the option `db`."""
    parts = urlsplit(url)
    in_path = "" if parts.scheme == "unix" else unquote(parts.path).strip("/")
    in_query = parse_qs(parts.query).get("db", [in_path])[-1]
    if in_path and not (in_path.isascii() and in_path.isdigit()):
        raise ValueError("names a database that is no number")
    if in_path and in_query.isdigit() and int(in_query) != int(in_path):
        raise ValueError("names two databases")


def _check_values(options: Mapping[str, Any]) -> None:
    """Reject values with which redis-py makes connections that fail at their first use."""
    for name, value in options.items():
        is_wrong = (
            (name in _OBJECTS)
            or (name in _POSITIVE and value <= 0)
            or (name in ("db", "health_check_interval") and value < 0)
            or (name == "client_name" and not re.fullmatch("[!-~]+", value))
        )
        if is_wrong:
            raise ValueError(f"has an option with a value that does not work in a URL: {name!r}")


def _checked(url: RedisUrl) -> RedisUrl:
    """The same; raises when a connection does not take one of the options, as with a misspelt one."""
    try:
        pool = url.pool()
        pool.make_connection()
        if isinstance(pool, SentinelConnectionPool):
            pool.sentinel_manager.sentinels[0].connection_pool.make_connection()
    except TypeError as error:
        option = str(error).rpartition("argument ")[2]
        raise ValueError(f"has an option that the Redis client does not know: {option}") from None
    except Exception:
        raise ValueError(_UNREADABLE) from None
    return url


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("names a database that is no number") from None


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
