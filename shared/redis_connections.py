"""Connections to Redis that leave a server which has become a read-only replica.

After a fail-over the old master may live on as a replica. A connection that stays with it reads old data, and
every write is answered READONLY for ever. These connections close at such an answer and raise a connection
error, so that the client connects anew: through Sentinel, a service's address or a proxy it then reaches the
new master.
"""

from typing import Any, Final

from redis import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio import Connection as AsyncConnection
from redis.asyncio import SSLConnection as AsyncSSLConnection
from redis.asyncio import UnixDomainSocketConnection as AsyncUnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelManagedConnection as AsyncSentinelManagedConnection
from redis.asyncio.sentinel import SentinelManagedSSLConnection as AsyncSentinelManagedSSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, ResponseError
from redis.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

READ_ONLY_TEXT: Final = "Redis is a read-only replica now"


def is_read_only(error: ResponseError) -> bool:
    """Tell whether a server rejected a write because it is a replica.

    Args:
        error: An error that the server answered. Redis 6 puts the reason in the middle of a script's error.

    Returns:
        Whether the reason is READONLY.
    """
    return isinstance(error, ReadOnlyError) or "READONLY" in str(error)


class _Packer:
    """Packs commands; a text that was read of bytes that are no UTF-8 becomes these bytes again."""

    def __init__(self, packer: Any) -> None:
        self._pack = packer.pack

    def pack(self, *args: Any) -> Any:
        try:
            return self._pack(*args)
        except UnicodeEncodeError:
            return self._pack(*(_bytes_of(each) if isinstance(each, str) else each for each in args))


def _bytes_of(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class PacksWhatItReads:
    """Lets a connection with `encoding_errors=surrogateescape` send what it has read, also by hiredis.

    It stands before a class of redis-py's connections.
    """

    encoder: Any

    def _construct_command_packer(self, packer: Any) -> Any:
        made = super()._construct_command_packer(packer)  # type: ignore[misc]
        return _Packer(made) if self.encoder.encoding_errors == "surrogateescape" else made


class _LeavesReplica(PacksWhatItReads):
    """Closes a connection whose server answers READONLY, before a class of redis-py's connections."""

    def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        except ResponseError as error:
            if not is_read_only(error):
                raise
            self.disconnect()  # type: ignore[attr-defined]
            raise RedisConnectionError(READ_ONLY_TEXT) from None


class _AsyncLeavesReplica:
    """`_LeavesReplica` for an event loop."""

    async def read_response(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*args, **options)  # type: ignore[misc]
        except ResponseError as error:
            if not is_read_only(error):
                raise
            await self.disconnect()  # type: ignore[attr-defined]
            raise RedisConnectionError(READ_ONLY_TEXT) from None


class TcpConnection(_LeavesReplica, Connection):
    """`redis://`."""


class TlsConnection(_LeavesReplica, SSLConnection):
    """`rediss://`."""


class UnixConnection(_LeavesReplica, UnixDomainSocketConnection):
    """`unix://`."""


class SentinelConnection(_LeavesReplica, SentinelManagedConnection):
    """`sentinel://`."""


class SentinelTlsConnection(_LeavesReplica, SentinelManagedSSLConnection):
    """`sentinel://` with `ssl=true`."""


class AsyncTcpConnection(_AsyncLeavesReplica, AsyncConnection):
    """`redis://`, for an event loop."""


class AsyncTlsConnection(_AsyncLeavesReplica, AsyncSSLConnection):
    """`rediss://`, for an event loop."""


class AsyncUnixConnection(_AsyncLeavesReplica, AsyncUnixDomainSocketConnection):
    """`unix://`, for an event loop."""


class AsyncSentinelConnection(_AsyncLeavesReplica, AsyncSentinelManagedConnection):
    """`sentinel://`, for an event loop."""


class AsyncSentinelTlsConnection(_AsyncLeavesReplica, AsyncSentinelManagedSSLConnection):
    """`sentinel://` with `ssl=true`, for an event loop."""


CONNECTION_CLASSES: Final[dict[str, tuple[Any, Any]]] = {
    "redis": (TcpConnection, AsyncTcpConnection),
    "rediss": (TlsConnection, AsyncTlsConnection),
    "unix": (UnixConnection, AsyncUnixConnection),
    "sentinel": (SentinelConnection, AsyncSentinelConnection),
    "sentinels": (SentinelTlsConnection, AsyncSentinelTlsConnection),
}
"""By kind of address: the class, and the one for an event loop. `sentinels` is Sentinel with TLS."""
