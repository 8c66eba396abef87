"""The command `doctor`: checks a worker's settings and the services that it depends on."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import typer
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError
from rich.markup import escape

from shared.messages import DeployMessage
from shared.redis_url import is_redis_url, read_redis_url
from worker.broker import Connection
from worker.broker.config import QUEUES
from worker.broker.queues import DEFAULT_QUEUE, waiting_messages
from worker.cli import cluster
from worker.cli.checks import redis_check
from worker.cli.console import BAD_ADDRESS_ERRORS, out
from worker.platform import AgentClient, BackendClient, ClientError, NotFoundError, clean
from worker.plugins import PluginError, PluginStore
from worker.runs.reports.webhook import WebhookClient
from worker.settings import Settings, SettingsError, load_settings, unknown_variables

INSPECT_TIMEOUT_SECONDS: Final = 2.0
"""How long to wait for the workers' answers."""


Answers = dict[str, list[dict[str, Any]]]
"""The queues of each worker."""


def consumed_queues(answers: Answers) -> set[str]:
    """The names of the queues that some worker consumes."""
    return {queue["name"] for queues in answers.values() for queue in queues}


def unconsumed_queues(answers: Answers) -> list[str]:
    """The contract's queues that no worker consumes."""
    return [name for name in QUEUES if name not in consumed_queues(answers)]


def active_queues() -> Answers:
    """The queues of each worker that answers in time."""
    # Imported here because the app reads the settings, which must have been checked before.
    from worker.app import app

    answers = app.control.inspect(timeout=INSPECT_TIMEOUT_SECONDS).active_queues() or {}
    return {worker: named_queues(answer) for worker, answer in answers.items()}


def named_queues(answer: object) -> list[dict[str, Any]]:
    """The queues in a worker's answer; none in that of a worker that answers with an error."""
    queues = answer if isinstance(answer, list) else []
    return [queue for queue in queues if isinstance(queue, dict) and isinstance(queue.get("name"), str)]


Check = Callable[[Settings], str]

CONNECT_TIMEOUT_SECONDS: Final = 3
TIMEOUTS: Final = {
    "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
    "socket_timeout": CONNECT_TIMEOUT_SECONDS,
}
RELEVANT_SETTINGS: Final = {
    "redis": "REDIS_URL",
    "queue": "CELERY_BROKER_URL",
    "backend": "SYNAPSE_HOST, SYNAPSE_ACCESS_TOKEN",
    "agent": "SYNAPSE_AGENT_URL, SYNAPSE_AGENT_TOKEN",
    "ray": "RAY_ADDRESS, RAY_AUTH_MODE, RAY_AUTH_TOKEN",
    "plugins": "PLUGINS_DIR",
    "webhook": "WORKER_WEBHOOK_URL, WORKER_WEBHOOK_SECRET",
}


class _CheckWarning(Exception):
    """Nothing is wrong, but the user should know: the check is a warning."""


class _CheckFailures(Exception):
    """Each line says what is wrong and what to do."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(lines)
        self.lines = lines


def _line(text: str) -> None:
    """Print one finding on one line, also into a file that is searched by lines."""
    out.print(text, highlight=False, soft_wrap=True)


def doctor() -> None:
    """Check the environment that a worker would start in; exit code 1 when something is wrong."""
    try:
        settings = load_settings()
    except SettingsError as error:
        for line in str(error).splitlines():
            _line(f"[red]✗[/] settings: {escape(line)}")
        _warn_of_unknown_variables()
        raise typer.Exit(1) from None
    _line("[green]✓[/] settings")
    _warn_of_unknown_variables()
    checks: dict[str, Check] = {
        "redis": _check_redis,
        "queue": _check_queue,
        "backend": _check_backend,
        "agent": _check_agent,
        "ray": _check_ray,
        "plugins": _check_plugins,
    }
    if settings.worker_webhook_url:
        checks["webhook"] = _check_webhook
    failed = [name for name, check in checks.items() if not _passes(name, check, settings)]
    if "queue" not in failed:
        _passes("workers", _check_workers, settings)
    if failed:
        raise typer.Exit(1)


def _warn_of_unknown_variables() -> None:
    for name, meant in unknown_variables(os.environ).items():
        hint = f"; is {meant} meant?" if meant else ""
        _line(f"[yellow]![/] settings: {escape(name)} is not a setting{hint}")


def _passes(name: str, check: Check, settings: Settings) -> bool:
    try:
        found = check(settings)
    except _CheckWarning as warning:
        _line(f"[yellow]![/] {name}: {warning}")
        return True
    except _CheckFailures as failures:
        for line in failures.lines:
            _line(f"[red]✗[/] {name}: {escape(line)}")
        return False
    except (ClientError, OperationalError, PluginError, RedisError, OSError) as error:
        problem = escape(clean(str(error)) or type(error).__name__)
        _line(f"[red]✗[/] {name}: {problem} [dim](see {RELEVANT_SETTINGS[name]})[/]")
        return False
    except BAD_ADDRESS_ERRORS:
        _line(f"[red]✗[/] {name}: no usable address [dim](see {RELEVANT_SETTINGS[name]})[/]")
        return False
    _line(f"[green]✓[/] {name}: {found}")
    return True


def _check_redis(settings: Settings) -> str:
    has_queues = settings.broker_url == settings.redis_url
    return _check_server("redis", settings.redis_url, QUEUES if has_queues else ())


def _check_server(name: str, url: str, queues: Sequence[str]) -> str:
    address = read_redis_url(url)
    with address.client(decode_responses=True, **TIMEOUTS) as redis:
        version = redis_check.version_of(redis)
        database = int(address.options.get("db", 0))
        prefix = address.global_keyprefix
        findings = redis_check.check_redis(redis, queues, database=database, keyprefix=prefix)
    for finding in findings:
        if not finding.is_error:
            _line(f"[yellow]![/] {name}: {escape(finding.text)}")
    if errors := [finding.text for finding in findings if finding.is_error]:
        raise _CheckFailures(errors)
    if queues:
        _connect_to_broker(url)  # as a worker does, whose options need not be those of a client
    return f"version {version}"


def _check_queue(settings: Settings) -> str:
    if settings.celery_broker_url is None:
        return "the Redis of REDIS_URL"
    if is_redis_url(settings.broker_url):
        return _check_server("queue", settings.broker_url, QUEUES)
    return f"connected over {_connect_to_broker(settings.broker_url)}"


def _connect_to_broker(url: str) -> str:
    with Connection(url, connect_timeout=CONNECT_TIMEOUT_SECONDS) as connection:
        connection.ensure_connection(max_retries=1, timeout=CONNECT_TIMEOUT_SECONDS)
        return str(connection.transport.driver_type)


def _check_backend(settings: Settings) -> str:
    token = settings.synapse_access_token.get_secret_value()
    backend = BackendClient(settings.synapse_host, token, tenant=settings.synapse_tenant)
    with backend, contextlib.suppress(NotFoundError):
        backend.get_job("0")
    return "answers and knows the token"


def _check_agent(settings: Settings) -> str:
    if settings.synapse_agent_url is None:
        raise _CheckWarning("SYNAPSE_AGENT_URL is not set: looked up in the backend by its id")
    token = settings.synapse_agent_token
    with AgentClient(settings.synapse_agent_url, token.get_secret_value() if token else "") as agent:
        agent.health()
    return "healthy"


def _check_ray(settings: Settings) -> str:
    if settings.ray_address is None:
        raise _CheckWarning("RAY_ADDRESS is not set: a deploy would end FAILED")
    _line("[dim]· checking ray …[/]")
    return cluster.check_cluster(settings.ray_address)


def _check_webhook(settings: Settings) -> str:
    with WebhookClient(settings.worker_webhook_url or "", settings.webhook_signing_keys) as webhook:
        webhook.post_test()
    return "takes a signed event (of the type test)"


def _check_workers(settings: Settings) -> str:
    try:
        answers = active_queues()
    except Exception as error:  # each broker library has its own; the connection was checked before
        raise _CheckWarning(f"could not be asked ({type(error).__name__})") from None
    for line in _unread_messages(settings, answers):
        _line(f"[yellow]![/] queue: {escape(line)}")
    answered = f"{len(answers)} answer{'s' if len(answers) == 1 else ''}"
    if unconsumed := unconsumed_queues(answers):
        raise _CheckWarning(f"{answered}; nobody listens on {', '.join(unconsumed)}")
    return f"{answered}; each queue has a listener"


def _unread_messages(settings: Settings, answers: Answers) -> Iterator[str]:
    """Lines on the queues in which messages lie and on which nobody listens."""
    try:
        waiting = _waiting_messages(settings.broker_url)
    except Exception as error:  # likewise
        yield f"its messages could not be counted ({type(error).__name__})"
        return
    for queue in sorted(waiting.keys() - consumed_queues(answers)):
        count = waiting[queue]
        agent = queue.removeprefix(f"{DeployMessage.queue}.")
        if queue == DEFAULT_QUEUE:
            advice = f"publish with queue=, which is one of {', '.join(QUEUES)}"
        elif agent != queue:
            advice = f"start a worker with WORKER_AGENT={agent} and -Q {queue}"
        else:
            advice = f"start a worker with -Q {queue}"
        lie = "1 message lies" if count == 1 else f"{count} messages lie"
        yield f"{lie} in {queue}, on which nobody listens: {advice}"


def _waiting_messages(url: str) -> dict[str, int]:
    if is_redis_url(url):
        address = read_redis_url(url)
        with address.client(**TIMEOUTS) as redis:
            return waiting_messages(redis, address.global_keyprefix)
    found = {}
    for queue in (*QUEUES, DEFAULT_QUEUE):
        connection = Connection(url, connect_timeout=CONNECT_TIMEOUT_SECONDS)
        with connection, contextlib.suppress(*connection.channel_errors):  # there is no such queue
            declared = connection.default_channel.queue_declare(queue, passive=True)
            found[queue] = int(declared.message_count)
    return {queue: count for queue, count in found.items() if count}


def _check_plugins(settings: Settings) -> str:
    count = len(PluginStore(settings.plugins_dir).names())
    if not count:
        raise _CheckWarning("PLUGINS_DIR holds no release, which is a folder or .zip named code@version")
    return f"{count} release{'s' if count > 1 else ''}"
