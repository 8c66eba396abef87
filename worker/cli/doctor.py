"""Is everything there that a worker needs? One line a finding, with what to do."""

import contextlib
from collections.abc import Callable

import typer
from redis import Redis
from redis.exceptions import RedisError

from worker.cli.console import out
from worker.platform import AgentClient, BackendClient, ClientError, NotFoundError, clean
from worker.plugins import PluginError
from worker.plugins.ray_session import session
from worker.settings import Settings, SettingsError, load

Check = Callable[[Settings], str]


def doctor() -> None:
    """Check the environment that a worker would start in; exit code 1 when something is wrong."""
    try:
        settings = load()
    except SettingsError as error:
        for line in str(error).splitlines():
            out.print(f"[red]✗[/] settings: {line}", highlight=False)
        raise typer.Exit(1) from None
    out.print("[green]✓[/] settings")
    checks: dict[str, Check] = {
        "redis": _redis,
        "backend": _backend,
        "agent": _agent,
        "ray": _ray,
        "plugins": _plugins,
    }
    wrong = [name for name, check in checks.items() if not _passes(name, check, settings)]
    if wrong:
        raise typer.Exit(1)


def _passes(name: str, check: Check, settings: Settings) -> bool:
    try:
        found = check(settings)
    except (ClientError, PluginError, RedisError, OSError) as error:
        out.print(f"[red]✗[/] {name}: {clean(str(error)) or type(error).__name__}", highlight=False)
        return False
    out.print(f"[green]✓[/] {name}: {found}", highlight=False)
    return True


def _redis(settings: Settings) -> str:
    version = Redis.from_url(settings.redis_url, socket_connect_timeout=3).info("server")["redis_version"]
    return f"version {version}"


def _backend(settings: Settings) -> str:
    token = settings.synapse_access_token.get_secret_value()
    backend = BackendClient(settings.synapse_host, token, tenant=settings.synapse_tenant)
    with backend, contextlib.suppress(NotFoundError):
        backend.get_job("0")
    return "answers and knows the token"


def _agent(settings: Settings) -> str:
    if settings.synapse_agent_url is None:
        return "not configured: looked up in the backend by its id"
    token = settings.synapse_agent_token
    with AgentClient(settings.synapse_agent_url, token.get_secret_value() if token else "") as agent:
        agent.health()
    return "healthy"


def _ray(settings: Settings) -> str:
    if settings.ray_address is None:
        return "RAY_ADDRESS is not set: a deploy would end FAILED"
    session.connect(settings.ray_address)
    return "connected"


def _plugins(settings: Settings) -> str:
    releases = sum(1 for entry in settings.plugins_dir.iterdir() if "@" in entry.name)
    return f"{releases} releases"
