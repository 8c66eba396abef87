"""What the commands share: the terminal, and where Redis and the broker are."""

from typing import Annotated, NoReturn
from urllib.parse import urlsplit

import typer
from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console
from rich.markup import escape

from worker.settings import BROKER_SCHEMES

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
Job = Annotated[str, typer.Argument(help="The backend's id of the job.", metavar="JOB")]
DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"
INTERRUPTED = 130
"""The exit code that a shell expects after Ctrl-C."""
REDIS_SCHEMES = "REDIS_URL must start with redis://, rediss:// or unix://"


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
    except ValueError:
        fail(REDIS_SCHEMES)
    try:
        redis.ping()
    except RedisError as error:
        fail(f"Redis does not answer ({type(error).__name__})", hint="Set REDIS_URL, or start Redis.")
    return redis


def queue_url(broker_url: str | None, redis_url: str) -> str:
    """Where the queues are; ends the command when the broker library would not know the address."""
    # Celery has another name for what the Redis client calls unix://.
    url = broker_url or redis_url.replace("unix://", "redis+socket://", 1)
    if any(urlsplit(each).scheme not in BROKER_SCHEMES for each in url.split(";")):
        if not broker_url:
            fail(REDIS_SCHEMES)
        fail(f"CELERY_BROKER_URL must start with one of {', '.join(BROKER_SCHEMES)} and ://")
    return url
