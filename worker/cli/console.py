"""What the commands share: the terminal, foreign text on it, and where Redis and the broker are."""

import json
import re
from typing import Annotated, Any, Final, NoReturn
from urllib.parse import urlsplit

import typer
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import ConnectionError as LostConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as NoAnswerError
from rich.console import Console
from rich.markup import escape

from shared import Message, Publisher
from worker.broker.config import broker_url as as_the_worker_reads_it
from worker.platform import clean, redact
from worker.settings import BROKER_SCHEMES

NOT_COLOURS: Final = re.compile(
    r"\x1b(?!\[[0-9;:]*m)(?:\[[0-9;:?]*[ -/]*[@-~]?|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?"
    r"|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]"
)
"""What a program can do to a terminal beyond colouring its text."""


def shown(text: str) -> str:
    """A line as a terminal may have it: the last state of a progress bar, colours, and nothing else."""
    text = NOT_COLOURS.sub("", text.rstrip("\r").rpartition("\r")[2])
    return f"{text}\x1b[0m" if "\x1b" in text else text


def cell(text: str) -> str:
    """Text of one line for rich: neither markup nor codes for the terminal."""
    return escape("".join(character if character.isprintable() else " " for character in text))


def json_for_terminal(value: Any) -> str:
    """JSON to be read, of which a terminal obeys nothing: what is not printable stays escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(
        character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1]
        for character in text
    )


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
NOT_AN_ADDRESS = (ValueError, TypeError, KeyError)
"""What the libraries raise for an address with a wrong port, host, database or option."""
REDIS_SCHEMES = "REDIS_URL must start with redis://, rediss:// or unix://"


def fail(message: str, *, hint: str = "") -> NoReturn:
    """End the command with one clear line and what to do about it, which may be several."""
    err.print(f"[bold red]error:[/] {escape(message)}", highlight=False)
    for line in hint.splitlines():
        # Not folded: a command in it is there to be copied.
        err.print(f"       {escape(line)}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def connect(url: str) -> Redis:
    """A connection that was tried; ends the command when Redis does not answer."""
    try:
        return reach(url)
    except RedisError as error:
        fail(
            f"Redis{at(url)} does not answer ({type(error).__name__})", hint="Set REDIS_URL, or start Redis."
        )


def reach(url: str) -> Redis:
    """The same for who can do without: raises `RedisError` when Redis does not answer."""
    if not url.startswith(("redis://", "rediss://", "unix://")):
        fail(REDIS_SCHEMES)
    try:
        redis = Redis.from_url(url, decode_responses=True, socket_connect_timeout=3, socket_timeout=5)
        redis.ping()
    except RedisError:
        raise
    except NOT_AN_ADDRESS:
        refuse("REDIS_URL")
    return redis


def at(url: str) -> str:
    """` at …`, the address that was tried, without its password; empty when it might hold a part of one."""
    for each in url.split(";"):
        parts = urlsplit(each)
        if "@" in f"{parts.path}{parts.query}{parts.fragment}":
            return ""
    return f" at {redact(url)}"


def refuse(name: str) -> NoReturn:
    """End the command over an address; not in the library's words, which may hold a part of the password."""
    fail(f"{name} is no usable address", hint="Look at its host, port, database and options.")


def lost(error: RedisError) -> NoReturn:
    """End a command under which Redis went away, or whose question Redis refuses."""
    if isinstance(error, LostConnectionError | NoAnswerError):
        fail(
            f"Redis does not answer any more ({type(error).__name__})",
            hint="Runs go on without this command; start it again when Redis is back.",
        )
    fail(f"Redis refuses: {clean(str(error))}")


def publish(message: Message, broker_url: str | None, redis_url: str) -> None:
    """Send a message; ends the command when the queue does not take it."""
    url = queue_url(broker_url, redis_url)
    try:
        with Publisher(url) as publisher:
            publisher.publish(message)
    except (OperationalError, OSError) as error:
        fail(
            f"the message queue{at(broker_url or redis_url)} does not answer ({type(error).__name__})",
            hint="Set CELERY_BROKER_URL or REDIS_URL.",
        )
    except NOT_AN_ADDRESS:
        refuse("CELERY_BROKER_URL" if broker_url else "REDIS_URL")


def queue_url(broker_url: str | None, redis_url: str) -> str:
    """Where the queues are; ends the command when the broker library would not know the address."""
    url = as_the_worker_reads_it(broker_url or redis_url)
    schemes = tuple(f"{scheme}://" for scheme in BROKER_SCHEMES)
    if not all(each.startswith(schemes) for each in url.split(";")):
        if not broker_url:
            fail(REDIS_SCHEMES)
        fail(f"CELERY_BROKER_URL must start with one of {', '.join(BROKER_SCHEMES)} and ://")
    return url
