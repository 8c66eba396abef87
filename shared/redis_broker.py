"""Celery's Redis transport, with its connections made from a `RedisUrl`.

Stock kombu reads a Redis URL in its own way: it fails at an option that redis-py knows, checks no certificate
by default, and keeps a connection to a server that has become a read-only replica.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from celery.app import amqp
from kombu import Connection as KombuConnection
from kombu.connection import ConnectionPool as KombuConnectionPool
from kombu.connection import PooledConnection as KombuPooledConnection
from kombu.transport import redis
from kombu.utils.collections import HashedSeq

from shared.rabbitmq import Queues
from shared.redis_url import RedisUrl, is_redis_url, read_redis_url

_POOL_OPTIONS = (
    "max_connections",
    "socket_timeout",
    "socket_connect_timeout",
    "socket_keepalive",
    "health_check_interval",
    "retry_on_timeout",
    "client_name",
)
"""Options of the transport that its connections take, where the URL does not have them."""


def _watched(connection_class: Any, channel: "Channel") -> Any:
    """A class of connections that the channel's poller forgets when they close."""

    class WatchedConnection(connection_class):
        def disconnect(self, *args: Any, **options: Any) -> None:
            super().disconnect(*args, **options)
            if channel._registered:
                channel._on_connection_disconnect(self)

    return WatchedConnection


@dataclass
class _SharedPool:
    """A pool, what its connections are made with, and the channels that use it."""

    made_with: tuple[object, ...]
    pool: Any
    channels: list[Any] = field(default_factory=list)


class _SharedPools:
    """Pools of connections that all channels of a process to one Redis use, until the last one is closed.

    A worker has several channels: of its consumer, its remote control, its events and its publishers.
    """

    def __init__(self) -> None:
        self._pools: list[_SharedPool] = []
        self._make_lock()
        # Another thread of the parent may hold it at that moment.
        os.register_at_fork(after_in_child=self._make_lock)

    def _make_lock(self) -> None:
        self._lock = threading.Lock()

    def acquire(self, channel: "Channel", options: dict[str, Any]) -> Any:
        """The pool for a channel and the options of its connections."""
        # The limit of the option is meant for the threads that share a channel.
        options.pop("max_connections", None)
        url, needed = channel.redis_url, channel.needed_options
        made_with = (os.getpid(), url, options, needed)
        with self._lock:
            found = next((shared for shared in self._pools if shared.made_with == made_with), None)
            if found is None:
                found = _SharedPool(made_with, url.pool(needed=needed, **options))
                self._pools.append(found)
            found.channels.append(channel)
            return found.pool

    def release(self, channel: "Channel") -> None:
        """The channel uses its pool no longer."""
        with self._lock:
            for shared in [shared for shared in self._pools if channel in shared.channels]:
                shared.channels.remove(channel)
                if not shared.channels:
                    self._pools.remove(shared)
                    shared.pool.disconnect()
                    if manager := getattr(shared.pool, "sentinel_manager", None):
                        manager.close()


_shared_pools = _SharedPools()

_TCP_OPTIONS = ("socket_connect_timeout", "socket_keepalive")
"""Options that a connection to a Unix socket does not take."""


class Channel(redis.Channel):
    """Kombu's channel; its connections are those of `RedisUrl`."""

    _pool: Any

    from_transport_options = (*redis.Channel.from_transport_options, "redis_url")
    redis_url: RedisUrl
    keyprefix_fanout: str
    needed_options: ClassVar[Mapping[str, Any]] = {}
    """Options of the connections that the channel needs, whatever the URL says."""

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:  # noqa: ARG002 - kombu's signature
        defaults = {name: getattr(self, name) for name in _POOL_OPTIONS}
        params = {"db": 0, **{name: value for name, value in defaults.items() if value is not None}}
        if self.redis_url.kind == "unix":
            params = {name: value for name, value in params.items() if name not in _TCP_OPTIONS}
        return params

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        """Open a channel.

        Args:
            connection: The transport.
            kwargs: As kombu's.
        """
        super().__init__(connection, **kwargs)
        # Kombu has asked whether Redis is there; a channel that only publishes needs that connection no more.
        self.async_pool.disconnect()

    def _get_pool(self, asynchronous: bool = False) -> Any:
        params = self._connparams(asynchronous)
        if asynchronous:
            pool = self.redis_url.pool(needed=self.needed_options, **params)
            pool.connection_class = _watched(pool.connection_class, self)
            # Kombu closes the connections to the Sentinels when the channel is closed.
            self._async_sentinel_manager = getattr(pool, "sentinel_manager", None)
        else:
            pool = _shared_pools.acquire(self, params)
        self.keyprefix_fanout = self.keyprefix_fanout.format(db=pool.connection_kwargs["db"])
        return pool

    def _disconnect_pools(self) -> None:
        if self._pool is not None:
            self._pool = None
            _shared_pools.release(self)
        super()._disconnect_pools()

    def _has_queue(self, queue: str, **_: Any) -> bool:
        # Kombu asks with EXISTS, to whose keys it adds no `global_keyprefix`.
        return bool(self._size(queue))


class Transport(redis.Transport):
    """Kombu's transport with this module's channel."""

    Channel = Channel


class Connection(KombuConnection):
    """A connection that uses this module's transport for Redis, with or without Sentinel."""

    redis_transport: type[redis.Transport] = Transport

    def __init__(self, hostname: Any = "localhost", *args: Any, **kwargs: Any) -> None:
        """Prepare a connection.

        Args:
            hostname: A host, or a URL; that of a Redis as `read_redis_url` reads it.
            args: As kombu's.
            kwargs: As kombu's; `transport_options` may hold the `redis_url` that was read already.

        Raises:
            ValueError: The URL of a Redis cannot be read.
        """
        options = kwargs.get("transport_options") or {}
        if isinstance(hostname, str) and is_redis_url(hostname) and "redis_url" not in options:
            sentinels = {name: options.get(name) for name in ("master_name", "sentinel_kwargs")}
            url = read_redis_url(hostname, **sentinels)
            hostname = url.broker_url
            kwargs["ssl"] = kwargs.get("ssl") or url.tls_options or False
            kwargs["transport_options"] = {**options, **url.transport_options}
        super().__init__(hostname, *args, **kwargs)

    def __eqhash__(self) -> Any:
        # Kombu keeps pools by it: two transports to one Redis in one process need one each.
        return HashedSeq(*super().__eqhash__(), self.redis_transport)

    def get_transport_cls(self) -> Any:
        """Select the transport.

        Returns:
            The class for this connection's URL.
        """
        found = super().get_transport_cls()
        return self.redis_transport if issubclass(found, redis.Transport) else found

    def Pool(self, limit: int | None = None, **_: Any) -> "ConnectionPool":
        """Make a pool of connections like this one; kombu's would be on the stock transport.

        Args:
            limit: The most connections; None for no limit.

        Returns:
            The pool.
        """
        return ConnectionPool(self, limit)


class PooledConnection(KombuPooledConnection, Connection):
    """A `Connection` of a pool."""


class ConnectionPool(KombuConnectionPool):
    """A pool of `PooledConnection`."""

    def new(self) -> PooledConnection:
        """Make a connection.

        Returns:
            One that knows its pool, with the transport of the pool's connection.
        """
        made = PooledConnection(self, **dict(self.connection._info(resolve=False)))
        made.redis_transport = self.connection.redis_transport
        return made


class AMQP(amqp.AMQP):
    """Makes an application's connections: `Celery(amqp="shared.redis_broker:AMQP")`."""

    Connection = Connection
    BrokerConnection = Connection
    queues_cls = Queues
