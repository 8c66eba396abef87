"""The command `console`: the live page of all runs, in a browser."""

import ipaddress
from pathlib import Path
from typing import Annotated, Final

import typer

from worker.cli.console import DEFAULT_REDIS_URL, BrokerUrl, RedisUrl, connect, fail, out, queue_url
from worker.settings import Settings, SettingsError, environment_setting, load_settings

DEFAULT_PORT: Final = 8365
HOW_TO_MAKE_ONE: Final = "export WORKER_CONSOLE_TOKEN=$(openssl rand -hex 24)"


def console(
    host: Annotated[
        str, typer.Option(help="Address to listen on; another than loopback needs WORKER_CONSOLE_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = DEFAULT_PORT,
    host_name: Annotated[
        list[str] | None,
        typer.Option(help="A name under which the page is reached, such as a proxy's; may be repeated."),
    ] = None,
    forwarded_allow_ips: Annotated[
        str,
        typer.Option(
            envvar="FORWARDED_ALLOW_IPS",
            help="Addresses and networks of the proxies before it, separated by commas, whose "
            "X-Forwarded-Proto is believed: behind TLS the cookie is Secure.",
        ),
    ] = "127.0.0.1",
    samples: Annotated[
        Path | None,
        typer.Option(help="A folder of images to show, with their labels in `samples.json`.", hidden=True),
    ] = None,
    redis_url: RedisUrl = DEFAULT_REDIS_URL,
    broker_url: BrokerUrl = None,
) -> None:
    """Serve the live page: runs, logs, waiting lists, deployments, dead letters and queues."""
    # Imported here, because it takes a second.
    from redis.asyncio import Redis as AsyncRedis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    from shared.redis_url import read_redis_url
    from worker.console.overview import Overview
    from worker.console.server import Console, serve
    from worker.console.sessions import MIN_TOKEN_CHARS
    from worker.platform import register_secrets

    settings = _worker_settings()
    try:
        token = environment_setting("worker_console_token")
    except SettingsError as error:
        fail(str(error))
    if token is None and not is_loopback(host):
        fail(
            f"{host} can be reached from other machines, so WORKER_CONSOLE_TOKEN is needed",
            hint=HOW_TO_MAKE_ONE,
        )
    if token is not None:
        if len(token.get_secret_value()) < MIN_TOKEN_CHARS:
            fail(
                f"WORKER_CONSOLE_TOKEN is too short: it has fewer than {MIN_TOKEN_CHARS} characters",
                hint=HOW_TO_MAKE_ONE,
            )
        register_secrets([token.get_secret_value()], forever=True)
    redis = connect(redis_url)
    broker = queue_url(broker_url, redis_url)
    # Without retries, so that a lost connection is noticed: what was published meanwhile is looked up.
    pool = read_redis_url(redis_url).async_pool(
        decode_responses=True, socket_timeout=10, socket_connect_timeout=3, retry=Retry(NoBackoff(), 0)
    )
    page = Console(
        redis,
        AsyncRedis.from_pool(pool),
        Overview(redis, broker, settings),
        broker,
        token=token and token.get_secret_value(),
        hosts=host_name or (),
        samples=samples,
    )
    address = f"[{host}]" if ":" in host else host
    out.print(f"console on http://{address}:{port}", highlight=False, soft_wrap=True)
    serve(page, host, port, forwarded_allow_ips)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _worker_settings() -> Settings | None:
    """A worker's settings, where they are all there: agents and workers are asked with them."""
    try:
        settings = load_settings()
    except SettingsError:
        return None
    from worker.platform import register_secrets

    register_secrets(settings.secrets(), forever=True)
    return settings
