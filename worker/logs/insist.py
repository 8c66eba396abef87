"""What has to get into Redis, however long Redis is away."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog
from redis.exceptions import RedisError

log = structlog.get_logger(__name__)

T = TypeVar("T")

RETRY_SECONDS: Final = 0.5


async def insist(operation: Callable[[], Awaitable[T]]) -> T:
    """Call `operation`, which is safe to repeat, until Redis has answered."""
    while True:
        try:
            return await operation()
        except (RedisError, OSError) as error:
            log.warning("Redis does not answer", error_type=type(error).__name__)
        await asyncio.sleep(RETRY_SECONDS)
