"""Who answers on the message queue, and on which queues nobody listens."""

import contextlib
import os
from collections.abc import Callable
from typing import Any, Final

import typer
from kombu import Connection
from kombu.exceptions import OperationalError
from redis import Redis
from redis.exceptions import RedisError
from rich.markup import escape

from worker.broker.config import QUEUES
from worker.cli import ray_check
from worker.cli.console import NOT_AN_ADDRESS, out
from worker.platform import AgentClient, BackendClient, ClientError, NotFoundError, clean
from worker.plugins import PluginError, PluginStore
from worker.settings import Settings, SettingsError, load_settings, unknown_variables

SECONDS: Final = 2.0
"""How long to wait for answers."""


def silent_queues(answers: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The contract's queues that none of the workers that answered consumes."""
    heard = {queue["name"] for queues in answers.values() for queue in queues}
    return [name for name in QUEUES if name not in heard]


def active_queues() -> dict[str, list[dict[str, Any]]]:
    """The queues of each worker that answers in time, over Redis or RabbitMQ."""
    # Imported here: the app is made from the settings, which the caller has checked.
    from worker.app import app

    return app.control.inspect(timeout=SECONDS).active_queues() or {}


Check = Callable[[Settings], str]

CONNECT_SECONDS: Final = 3
WHERE_TO_LOOK: Final = {
    "redis": "REDIS_URL",
    "queue": "CELERY_BROKER_URL",
    "backend": "SYNAPSE_HOST, SYNAPSE_ACCESS_TOKEN",
    "agent": "SYNAPSE_AGENT_URL, SYNAPSE_AGENT_TOKEN",
    "ray": "RAY_ADDRESS, RAY_AUTH_MODE, RAY_AUTH_TOKEN",
    "plugins": "PLUGINS_DIR",
}


class _NotConfiguredError(Exception):
    """Nothing is wrong, but somebody may miss it."""


def doctor() -> None:
    """Check the environment that a worker would start in; exit code 1 when something is wrong."""
    try:
        settings = load_settings()
    except SettingsError as error:
        for line in str(error).splitlines():
            out.print(f"[red]✗[/] settings: {escape(line)}", highlight=False)
        _tell_unknown_names()
        raise typer.Exit(1) from None
    out.print("[green]✓[/] settings")
    _tell_unknown_names()
    checks: dict[str, Check] = {
        "redis": _redis,
        "queue": _queue,
        "backend": _backend,
        "agent": _agent,
        "ray": _ray,
        "plugins": _plugins,
    }
    wrong = [name for name, check in checks.items() if not _passes(name, check, settings)]
    if "queue" not in wrong:
        _passes("workers", _workers, settings)
    if wrong:
        raise typer.Exit(1)


def _tell_unknown_names() -> None:
    for name, meant in unknown_variables(os.environ).items():
        hint = f"; is {meant} meant?" if meant else ""
        out.print(f"[yellow]![/] settings: {escape(name)} is none{hint}", highlight=False)


def _passes(name: str, check: Check, settings: Settings) -> bool:
    try:
        found = check(settings)
    except _NotConfiguredError as note:
        out.print(f"[yellow]![/] {name}: {note}", highlight=False)
        return True
    except (ClientError, OperationalError, PluginError, RedisError, OSError) as error:
        what = escape(clean(str(error)) or type(error).__name__)
        out.print(f"[red]✗[/] {name}: {what} [dim](see {WHERE_TO_LOOK[name]})[/]", highlight=False)
        return False
    except NOT_AN_ADDRESS:
        out.print(f"[red]✗[/] {name}: no usable address [dim](see {WHERE_TO_LOOK[name]})[/]", highlight=False)
        return False
    out.print(f"[green]✓[/] {name}: {found}", highlight=False)
    return True


def _redis(settings: Settings) -> str:
    redis = Redis.from_url(settings.redis_url, socket_connect_timeout=CONNECT_SECONDS)
    return f"version {redis.info('server')['redis_version']}"


def _queue(settings: Settings) -> str:
    if settings.celery_broker_url is None:
        return "the Redis of REDIS_URL"
    with Connection(settings.broker_url, connect_timeout=CONNECT_SECONDS) as connection:
        connection.ensure_connection(max_retries=1, timeout=CONNECT_SECONDS)
        return f"connected over {connection.transport.driver_type}"


def _backend(settings: Settings) -> str:
    token = settings.synapse_access_token.get_secret_value()
    backend = BackendClient(settings.synapse_host, token, tenant=settings.synapse_tenant)
    with backend, contextlib.suppress(NotFoundError):
        backend.get_job("0")
    return "answers and knows the token"


def _agent(settings: Settings) -> str:
    if settings.synapse_agent_url is None:
        raise _NotConfiguredError("SYNAPSE_AGENT_URL is not set: looked up in the backend by its id")
    token = settings.synapse_agent_token
    with AgentClient(settings.synapse_agent_url, token.get_secret_value() if token else "") as agent:
        agent.health()
    return "healthy"


def _ray(settings: Settings) -> str:
    if settings.ray_address is None:
        raise _NotConfiguredError("RAY_ADDRESS is not set: a deploy would end FAILED")
    out.print("[dim]· checking ray …[/]", highlight=False)
    ray_check.check(settings.ray_address)
    return "connected"


def _workers(_settings: Settings) -> str:
    try:
        answers = active_queues()
    except Exception as error:  # each broker's library has its own; that the queue answers is known already
        raise _NotConfiguredError(f"could not be asked ({type(error).__name__})") from None
    many = f"{len(answers)} answer{'s' if len(answers) == 1 else ''}"
    if silent := silent_queues(answers):
        raise _NotConfiguredError(f"{many}; nobody listens on {', '.join(silent)}")
    return f"{many}; each queue has a listener"


def _plugins(settings: Settings) -> str:
    count = len(PluginStore(settings.plugins_dir).names())
    if not count:
        raise _NotConfiguredError(
            "PLUGINS_DIR holds no release, which is a folder or .zip named code@version"
        )
    return f"{count} release{'s' if count > 1 else ''}"
