"""What the commands share: the terminal, and where Redis and the broker are."""

from typing import Annotated, NoReturn

import typer
from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console
from rich.markup import escape

out = Console()
err = Console(stderr=True)

RedisUrl = Annotated[
    str,
    typer.Option("--redis-url", envvar="REDIS_URL", help="Redis that the workers use.", show_default=True),
]
BrokerUrl = Annotated[
    str | None,
    typer.Option("--broker-url", envvar="CELERY_BROKER_URL", help="The message queue; default: the Redis."),
]
DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"


def fail(message: str, *, hint: str = "") -> NoReturn:
    """End the command with one clear line and what to do about it."""
    err.print(f"[bold red]error:[/] {escape(message)}", highlight=False)
    if hint:
        err.print(f"       {escape(hint)}", highlight=False)
    raise typer.Exit(1)


def connect(url: str) -> Redis:
    """A connection that was tried; ends the command when Redis does not answer."""
    try:
        redis = Redis.from_url(url, decode_responses=True, socket_connect_timeout=3)
        redis.ping()
    except (RedisError, ValueError) as error:
        fail(f"Redis does not answer ({type(error).__name__})", hint="Set REDIS_URL, or start Redis.")
    return redis
