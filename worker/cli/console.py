"""What the commands share: options, safe output on a terminal, connections to Redis and the broker."""

import atexit
import json
import os
import re
from pathlib import Path
from typing import Annotated, Final, NoReturn
from urllib.parse import urlsplit

import typer
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from shared import Message, Publisher
from shared.publisher import PRIORITIES
from shared.redis_url import is_redis_url, read_redis_url
from worker import tracing
from worker.platform import clean, redact, register_secrets
from worker.setting_values import header_secrets, url_passwords
from worker.settings import BROKER_SCHEMES, environment_setting, trace_mistakes

MAX_LINE: Final = 100_000
"""Of a table that is no terminal's: its longest line."""

NON_COLOUR_CONTROLS: Final = re.compile(
    r"\x1b(?!\[[0-9;:]*m)(?:\[[0-9;:?]*[ -/]*[@-~]?|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?"
    r"|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]"
)
"""Control sequences other than colours: a program's output must not move the cursor, for example."""


def terminal_line(text: str) -> str:
    """Make a line safe for the terminal: keep its colours, and of a redrawn progress bar the last state."""
    text = NON_COLOUR_CONTROLS.sub("", text.rstrip("\r").rpartition("\r")[2])
    return f"{text}\x1b[0m" if "\x1b" in text else text


def table_cell(text: str) -> str:
    """Make text safe for a cell of a rich table: without markup, control codes and line breaks."""
    return escape("".join(character if character.isprintable() else " " for character in text))


def terminal_json(value: object) -> str:
    """Format JSON for the terminal: characters that are not printable stay escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(
        character if character.isprintable() or character == "\n" else json.dumps(character)[1:-1]
        for character in text
    )


out = Console()
err = Console(stderr=True)


def print_table(table: Table, *, empty: str) -> None:
    """Print a list, `empty` for one without rows: folded to the terminal, else with whole lines."""
    if out.is_terminal or not table.row_count:
        out.print(table if table.row_count else empty)
        return
    options = out.options.update(width=MAX_LINE, max_width=MAX_LINE)
    width = out.measure(table, options=options).maximum
    Console(file=out.file, width=max(width, 1), no_color=out.no_color).print(table)


def print_json(value: object) -> None:
    """Print JSON. Not by rich, which would fold long texts."""
    typer.echo(terminal_json(value))


RedisUrl = Annotated[
    str,
    typer.Option("--redis-url", envvar="REDIS_URL", help="Redis that the workers use.", show_default=True),
]
BrokerUrl = Annotated[
    str | None,
    typer.Option("--broker-url", envvar="CELERY_BROKER_URL", help="Broker URL; default: that of Redis."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Job = Annotated[str, typer.Argument(help="The backend's id of the job.", metavar="JOB")]
PluginsDir = Annotated[
    Path,
    typer.Option(
        "--plugins-dir", envvar="PLUGINS_DIR", help="The plugin store.", exists=True, file_okay=False
    ),
]
DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"
INTERRUPTED_EXIT_CODE = 130
"""The exit code that a shell expects after Ctrl-C (128 + SIGINT)."""
BAD_ADDRESS_ERRORS = (ValueError, TypeError, KeyError)
"""What the client libraries raise for a URL with a wrong port, host, database or option."""
REDIS_SCHEME_ERROR = "REDIS_URL must start with redis://, rediss://, unix:// or sentinel://"


def fail(message: str, *, hint: str = "") -> NoReturn:
    """End the command with one line that says what is wrong, and lines that say what to do about it."""
    err.print(f"[bold red]error:[/] {escape(message)}", highlight=False)
    for line in hint.splitlines():
        # Not wrapped, so that a command in the hint can be copied.
        err.print(f"       {escape(line)}", highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def connect(url: str) -> Redis:
    """Connect to Redis; ends the command when it does not answer."""
    try:
        return try_connect(url)
    except RedisError as error:
        fail(
            f"Redis{address_suffix(url)} does not answer ({type(error).__name__})",
            hint="Set REDIS_URL, or start Redis.",
        )


def try_connect(url: str) -> Redis:
    """Connect to Redis; raises `RedisError` when it does not answer, for commands that work without it."""
    if not is_redis_url(url):
        fail(REDIS_SCHEME_ERROR)
    try:
        register_secrets(_passwords(url), forever=True)
        redis = read_redis_url(url).client(decode_responses=True, socket_connect_timeout=3, socket_timeout=5)
        redis.ping()
    except RedisError:
        raise
    except BAD_ADDRESS_ERRORS:
        fail_bad_address("REDIS_URL")
    return redis


def _passwords(url: str) -> list[str]:
    """Those of a broker that has several addresses, too; raises `ValueError` for what is no URL."""
    return [password for part_url in url.split(";") for password in url_passwords(part_url)]


def address_suffix(url: str) -> str:
    """` at {url}` without the password; empty when an unusual place may hold part of the password."""
    for part_url in url.split(";"):
        parts = urlsplit(part_url)
        if "@" in f"{parts.path}{parts.query}{parts.fragment}":
            return ""
    return f" at {redact(url)}"


def fail_bad_address(name: str) -> NoReturn:
    """End the command because a URL is wrong. The library's error may hold a password and is not shown."""
    fail(f"{name} is no usable address", hint="Look at its host, port, database and options.")


def fail_on_redis_error(error: RedisError) -> NoReturn:
    """End a command because the connection to Redis is lost or Redis answers with an error."""
    if isinstance(error, RedisConnectionError | RedisTimeoutError):
        fail(
            f"Redis does not answer any more ({type(error).__name__})",
            hint="Runs go on without this command; start it again when Redis is back.",
        )
    fail(f"Redis rejects the command: {clean(str(error))}")


Priority = Annotated[
    int | None,
    typer.Option(
        min=PRIORITIES[0],
        max=PRIORITIES[-1],
        help="Of the run's messages: on Redis 0, the default, is the most urgent, 9 the least.",
    ),
]


def publish(message: Message, broker_url: str | None, redis_url: str, *, priority: int | None = None) -> None:
    """Publish a message; ends the command when the broker does not accept it."""
    url = queue_url(broker_url, redis_url)
    try:
        register_secrets(_passwords(url), forever=True)
        with _traced(message), Publisher(url) as publisher:
            publisher.publish(message, priority=priority)
    except (OperationalError, OSError) as error:
        address = address_suffix(broker_url or redis_url)
        fail(
            f"the message queue{address} does not answer ({type(error).__name__})",
            hint="Set CELERY_BROKER_URL or REDIS_URL.",
        )
    except BAD_ADDRESS_ERRORS:
        fail_bad_address("CELERY_BROKER_URL" if broker_url else "REDIS_URL")


def _traced(message: Message) -> tracing.Span:
    """The beginning of the message's trace, or a part of the caller's, if traces are sent anywhere."""
    if mistakes := trace_mistakes():
        for mistake in mistakes:
            err.print(f"[yellow]warning:[/] {escape(mistake)}", highlight=False)
        return tracing.NO_SPAN
    endpoint, headers = (
        environment_setting(f"otel_exporter_otlp_{name}") for name in ("endpoint", "headers")
    )
    if endpoint is None:
        return tracing.NO_SPAN
    if headers:
        register_secrets(header_secrets(headers.get_secret_value()), forever=True)
    tracing.enable(tracing.Target(endpoint, headers))
    atexit.register(tracing.close)
    attributes = {
        "messaging.system": "celery",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": message.queue,
        "synapse.job": message.job,
    }
    context = os.environ.get("TRACEPARENT")
    return tracing.task_span(f"send {message.task}", context, message.job, attributes, kind="PRODUCER")


def queue_url(broker_url: str | None, redis_url: str) -> str:
    """The URL of the broker; ends the command when the broker library does not support its scheme."""
    url = broker_url or redis_url
    schemes = tuple(f"{scheme}://" for scheme in BROKER_SCHEMES)
    if not all(part_url.startswith(schemes) for part_url in url.split(";")):
        if not broker_url:
            fail(REDIS_SCHEME_ERROR)
        fail(f"CELERY_BROKER_URL must start with one of {', '.join(BROKER_SCHEMES)} and ://")
    return url
