"""The command `doctor`: checks a worker's settings and the services that it depends on."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Final

import typer
from kombu.exceptions import OperationalError
from pydantic import SecretStr
from redis.exceptions import RedisError

from shared.messages import DeployMessage
from shared.redis_url import is_redis_url, read_redis_url
from worker import tracing
from worker.broker import Connection
from worker.broker.config import QUEUES
from worker.broker.queues import DEFAULT_QUEUE, waiting_messages
from worker.cli import cluster
from worker.cli.checks import redis_check
from worker.cli.checks.host_check import check_disk, check_port, check_proxies, check_tokens, free_space
from worker.cli.checks.rabbitmq_check import left_in_redis, missing_rights
from worker.cli.checks.report import CheckFailures, CheckWarning, Report
from worker.cli.checks.traces_check import check_receiver
from worker.cli.console import BAD_ADDRESS_ERRORS
from worker.monitoring.traces import target_of
from worker.platform import (
    AgentClient,
    AuthenticationError,
    AuthorizationError,
    BackendClient,
    ClientError,
    NotFoundError,
    clean,
)
from worker.plugins import PluginError, PluginStore
from worker.runs.reports.webhook_client import WebhookClient
from worker.settings import MB, Settings, SettingsError, load_settings, trace_mistakes, unknown_variables

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


Check = Callable[[Settings, "Report"], str]

MAX_PLUGINS_SECONDS: Final = 5.0
"""For how long releases are read; a store may hold thousands."""

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
    "traces": "OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_HEADERS",
    "host": "TMPDIR",
}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print all findings as JSON at the end.")] = False,
) -> None:
    """Check the environment that a worker would start in; exit code 1 when something is wrong."""
    report = Report(as_json=as_json)
    try:
        settings = load_settings()
    except SettingsError as error:
        for line in str(error).splitlines():
            report.add("settings", "error", line)
        _warn_of_unknown_variables(report)
        report.end(is_healthy=False)
    report.add("settings", "ok")
    _warn_of_unknown_variables(report)
    checks: dict[str, Check] = {
        "host": _check_host,
        "redis": _check_redis,
        "queue": _check_queue,
        "backend": _check_backend,
        "agent": _check_agent,
        "ray": _check_ray,
        "plugins": _check_plugins,
    }
    if settings.worker_webhook_url:
        checks["webhook"] = _check_webhook
    if settings.otel_exporter_otlp_endpoint or trace_mistakes():
        checks["traces"] = _check_traces
    failed = [name for name, check in checks.items() if not _passes(name, check, settings, report)]
    if "queue" not in failed:
        _passes("workers", _check_workers, settings, report)
    report.end(is_healthy=not failed)


def _warn_of_unknown_variables(report: Report) -> None:
    for name, meant in unknown_variables(os.environ).items():
        hint = f"; is {meant} meant?" if meant else ""
        report.add("settings", "warning", f"{name} is not a setting{hint}")


def _passes(name: str, check: Check, settings: Settings, report: Report) -> bool:
    try:
        found = check(settings, report)
    except CheckWarning as warning:
        report.add(name, "warning", str(warning))
        return True
    except CheckFailures:
        return False
    except (ClientError, OperationalError, PluginError, RedisError, OSError) as error:
        problem = clean(str(error)) or type(error).__name__
        report.add(name, "error", problem, see=RELEVANT_SETTINGS[name])
        return False
    except BAD_ADDRESS_ERRORS:
        report.add(name, "error", "no usable address", see=RELEVANT_SETTINGS[name])
        return False
    report.add(name, "ok", found)
    return True


def _check_host(settings: Settings, report: Report) -> str:
    report.add_all("settings", check_tokens(settings))
    report.add_all(
        "host", [*check_disk(settings), *check_proxies(settings, os.environ), *check_port(settings)]
    )
    return free_space()


def _check_redis(settings: Settings, report: Report) -> str:
    has_queues = settings.broker_url == settings.redis_url
    return _check_server("redis", settings.redis_url, QUEUES if has_queues else (), report)


def _check_server(name: str, url: str, queues: Sequence[str], report: Report) -> str:
    address = read_redis_url(url)
    with address.client(decode_responses=True, **TIMEOUTS) as redis:
        version = redis_check.version_of(redis)
        database = int(address.options.get("db", 0))
        prefix = address.global_keyprefix
        findings = redis_check.check_redis(redis, queues, database=database, keyprefix=prefix)
    report.add_all(name, findings)
    if queues:
        _connect_to_broker(url)  # as a worker does, whose options need not be those of a client
    return f"version {version}"


def _check_queue(settings: Settings, report: Report) -> str:
    if settings.celery_broker_url is None:
        return "the Redis of REDIS_URL"
    if is_redis_url(settings.broker_url):
        return _check_server("queue", settings.broker_url, QUEUES, report)
    connected = _connect_to_broker(settings.broker_url)
    _warn_of_left_messages(settings.redis_url, report)
    with Connection(settings.broker_url, connect_timeout=CONNECT_TIMEOUT_SECONDS) as connection:
        if connection.transport.driver_type == "amqp":
            report.add_all("queue", missing_rights(connection, settings.worker_agent))
    return f"connected to {connected}"


def _warn_of_left_messages(url: str, report: Report) -> None:
    address = read_redis_url(url)
    # The check of Redis says what is wrong with it, and its user may have no right to queues.
    with contextlib.suppress(RedisError, *BAD_ADDRESS_ERRORS), address.client(**TIMEOUTS) as redis:
        report.add_all("queue", left_in_redis(redis, address.global_keyprefix))


def _connect_to_broker(url: str) -> str:
    """The server's name and version where it says them, as a RabbitMQ does."""
    with Connection(url, connect_timeout=CONNECT_TIMEOUT_SECONDS) as connection:
        connection.ensure_connection(max_retries=1, timeout=CONNECT_TIMEOUT_SECONDS)
        properties = getattr(connection.connection, "server_properties", {})
        named = [str(properties[name]) for name in ("product", "version") if name in properties]
        return " ".join(named) or str(connection.transport.driver_type)


def _check_backend(settings: Settings, report: Report) -> str:
    _ask_backend(settings, settings.synapse_access_token)
    if settings.worker_plugin_access_token is None:
        return "answers and knows the token"
    try:
        _ask_backend(settings, settings.worker_plugin_access_token)
    except AuthorizationError:
        pass  # it is known, and may not read jobs
    except AuthenticationError:
        text = "does not know the token of plugin code: create one, or unset it"
        report.add("backend", "error", text, see="WORKER_PLUGIN_ACCESS_TOKEN")
        raise CheckFailures from None
    return "answers and knows both tokens"


def _ask_backend(settings: Settings, token: SecretStr) -> None:
    with (
        BackendClient(
            settings.synapse_host, token.get_secret_value(), tenant=settings.synapse_tenant
        ) as backend,
        contextlib.suppress(NotFoundError),
    ):
        backend.get_job("0")


def _check_agent(settings: Settings, report: Report) -> str:  # noqa: ARG001 - a check
    if settings.synapse_agent_url is None and settings.worker_agent is not None:
        return _check_agent_of_backend(settings, settings.worker_agent)
    if settings.synapse_agent_url is None:
        raise CheckWarning("SYNAPSE_AGENT_URL is not set: looked up in the backend by its id")
    token = settings.synapse_agent_token
    with AgentClient(settings.synapse_agent_url, token.get_secret_value() if token else "") as agent:
        agent.health()
    return "healthy"


def _check_agent_of_backend(settings: Settings, id_: int) -> str:
    """Ask the one agent of WORKER_AGENT, which a worker looks up in the backend."""
    token = settings.synapse_access_token.get_secret_value()
    with BackendClient(settings.synapse_host, token, tenant=settings.synapse_tenant) as backend:
        try:
            found = backend.get_agent(id_)
        except NotFoundError:
            raise NotFoundError(f"the backend has no agent {id_}: see WORKER_AGENT", 404) from None
    if not found.get("url"):
        raise CheckWarning(f"agent {id_} has no URL in the backend: the capacity gate asks nobody")
    with AgentClient(str(found["url"]), str(found.get("token") or "")) as agent:
        agent.health()
    return f"agent {id_} of the backend is healthy"


def _check_ray(settings: Settings, report: Report) -> str:
    if settings.ray_address is None:
        what = "deploy and to_task" if settings.worker_plugin_host == "ray" else "deploy"
        hint = " (or WORKER_PLUGIN_HOST=process for to_task alone)" if "to_task" in what else ""
        raise CheckWarning(f"RAY_ADDRESS is not set: a {what} would end FAILED{hint}")
    report.note("checking ray …")
    return cluster.check_cluster(settings.ray_address)


def _check_webhook(settings: Settings, _: Report) -> str:
    with WebhookClient(settings.worker_webhook_url or "", settings.webhook_signing_keys) as webhook:
        webhook.post_test()
    return "takes a signed event (of the type test)"


def _check_traces(settings: Settings, _: Report) -> str:
    """Send no spans. Runs do not need them, so what is wrong is a warning."""
    if mistakes := trace_mistakes():
        raise CheckWarning(f"no traces are sent: {'; '.join(mistakes)}")
    target = target_of(settings)
    if not tracing.is_installed():
        raise CheckWarning("OTEL_EXPORTER_OTLP_ENDPOINT is set, but synapse-worker[traces] is not installed")
    problem = target and check_receiver(target, CONNECT_TIMEOUT_SECONDS)
    if problem is not None:
        raise CheckWarning(f"no traces are sent: {problem} (see {RELEVANT_SETTINGS['traces']})")
    return "the receiver takes spans"


def _check_workers(settings: Settings, report: Report) -> str:
    try:
        answers = active_queues()
    except Exception as error:  # each broker library has its own; the connection was checked before
        raise CheckWarning(f"could not be asked ({type(error).__name__})") from None
    for line in _unread_messages(settings, answers):
        report.add("queue", "warning", line)
    answered = f"{len(answers)} answer{'s' if len(answers) == 1 else ''}"
    if unconsumed := unconsumed_queues(answers):
        raise CheckWarning(f"{answered}; nobody listens on {', '.join(unconsumed)}")
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
        if queue == DEFAULT_QUEUE or (queue not in QUEUES and not agent.isdigit()):
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


def _check_plugins(settings: Settings, report: Report) -> str:
    store = PluginStore(settings.plugins_dir, max_bytes=settings.worker_plugin_max_mb * MB)
    names = store.names()
    if not names:
        raise CheckWarning("PLUGINS_DIR holds no release, which is a folder or .zip named code@version")
    until, looked_at = time.monotonic() + MAX_PLUGINS_SECONDS, 0
    for name in reversed(names):
        if time.monotonic() > until:
            break
        looked_at += 1
        try:
            store.get(name)
        except PluginError as error:
            report.add("plugins", "warning", f"{name} cannot be used: {clean(str(error))}")
    seen = "" if looked_at == len(names) else f", {looked_at} of which were looked at"
    return f"{len(names)} release{'s' if len(names) > 1 else ''}{seen}"
