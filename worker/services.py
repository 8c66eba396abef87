"""What a process has one of: settings, Redis, clients, the plugin store and host, the runs."""

from functools import lru_cache
from pathlib import Path

import structlog
from celery import Celery, current_app
from redis import Redis, RedisError
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from shared.messages import DeployMessage
from shared.redis_url import is_redis_url, read_redis_url
from worker.agents import DEPENDENCY_TIMEOUT, Agents
from worker.per_process import RecentlyUsed, once_per_instance, once_per_process
from worker.platform import (
    AgentClient,
    BackendClient,
    RetryPolicy,
    limit_responses,
    register_secrets,
    register_settings,
)
from worker.platform.streams import StreamLimits
from worker.plugins import (
    ActionRequest,
    ClientAccess,
    PluginHost,
    PluginStore,
    Release,
    request_for,
)
from worker.plugins.output import OnOutput, PluginOutput
from worker.plugins.package import FolderPackages, Packages, RayPackages
from worker.plugins.process_host import ProcessHost
from worker.plugins.ray_driver import RayConnection
from worker.plugins.ray_host import RayHost
from worker.runs.model import AnyRun
from worker.runs.publisher import CeleryPublisher
from worker.runs.reports.sender import ReportSender
from worker.runs.reports.webhook import Webhooks, WebhookSender
from worker.runs.reports.webhook_client import WebhookClient
from worker.runs.runs import Runs, Timing
from worker.runs.shares.tenants import ShareLimits
from worker.settings import MB, Settings, settings

log = structlog.get_logger(__name__)

STEP_RETRIES = RetryPolicy(max_retry_after=1.0)
"""A service that asks for a longer wait is called by a later delivery: no step waits for it."""


class Services:
    """Made on first use, so that a forked pool process has its own connections."""

    def __init__(self, settings: Settings, app: Celery) -> None:
        self.settings = settings
        self._app = app
        self.declared_params: RecentlyUsed[tuple[str, str], frozenset[str]] = RecentlyUsed()
        """By checksum and entrypoint, the keys of releases without parameters of their own."""
        register_secrets(settings.secrets(), forever=True)
        limit_responses(settings.worker_max_answer_mb)

    @once_per_instance
    def redis(self) -> "Redis":
        """Answers are text. A dead Redis is an error within seconds."""
        return read_redis_url(self.settings.redis_url).client(
            decode_responses=True,
            socket_timeout=5,
            socket_connect_timeout=3,
            health_check_interval=15,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), retries=3),
        )

    @once_per_instance
    def runs(self) -> Runs:
        """The runs, and the messages that carry them on."""
        timing = Timing(self.settings.worker_visibility_timeout_seconds)
        broker_url, redis_url = self.settings.broker_url, self.settings.redis_url
        publisher = CeleryPublisher(
            self._app, shares_redis=broker_url == redis_url, is_redis=is_redis_url(broker_url)
        )
        return Runs(
            self.redis,
            publisher,
            timing,
            lambda job, delay: self.reports.add(job, delay),
            (lambda job: self.webhooks.add(job)) if self.settings.worker_webhook_url else None,
            ShareLimits(
                self.settings.worker_tenant_chunks,
                self.settings.worker_tenant_runs,
                self.settings.synapse_tenant,
            ),
            self.settings.worker_ended_runs_max_age_seconds,
        )

    @once_per_instance
    def reports(self) -> ReportSender:
        """What reports runs to the backend."""
        return ReportSender(self.runs, self.backend)

    @once_per_instance
    def webhooks(self) -> WebhookSender:
        """What sends ends to the webhook, which must be set."""
        settings = self.settings
        client = WebhookClient(settings.worker_webhook_url or "", settings.webhook_signing_keys)
        return WebhookSender(self.runs, Webhooks(self.redis), client)

    @once_per_instance
    def store(self) -> PluginStore:
        """Where releases are found."""
        return PluginStore(self.settings.plugins_dir, max_bytes=self.settings.worker_plugin_max_mb * MB)

    @once_per_instance
    def stream_limits(self) -> StreamLimits:
        """How much of a log is followed."""
        settings = self.settings
        return StreamLimits(
            max_messages=settings.worker_stream_max_messages,
            max_lines=settings.worker_stream_max_lines,
            max_bytes=settings.worker_stream_max_bytes,
            max_message_size=settings.worker_stream_max_message_bytes,
            queue_size=settings.worker_stream_queue,
        )

    @once_per_instance
    def ray(self) -> RayConnection:
        """The connection to the cluster of RAY_ADDRESS. Nothing is connected before the first call."""
        return RayConnection(self.settings.ray_address)

    @once_per_instance
    def host(self) -> PluginHost:
        """Where releases' code runs."""
        return make_host(self.settings, self.ray, self.packages, self._add_plugin_output)

    @once_per_instance
    def packages(self) -> Packages:
        """Where releases' packages are stored."""
        folder = self.settings.worker_package_store
        return FolderPackages(Path(folder)) if folder else RayPackages(self.ray)

    def _add_plugin_output(self, request: ActionRequest, output: PluginOutput) -> None:
        """What plugin code says is not worth a call of it again: it is lost while Redis is away."""
        if request.job is None:
            return
        try:
            self.runs.add_plugin_output(request.job, output)
        except RedisError as error:
            log.warning("plugin output lost", job=request.job, error_type=type(error).__name__)

    def action_of(self, run: AnyRun) -> tuple[Release, ActionRequest]:
        """The release that a run names, and the request for its action; plugin code gets the lesser token."""
        message, settings = run.message, self.settings
        token = settings.worker_plugin_access_token
        tenant = message.tenant or settings.synapse_tenant
        agent_url = settings.synapse_agent_url
        if token is not None and agent_url is None:
            agent = message.agent if isinstance(message, DeployMessage) else message.params.agent
            agent_url = self.agents.url_for_plugins(agent, tenant)
        access = ClientAccess(
            host=settings.synapse_host,
            token=token.get_secret_value() if token else None,
            tenant=tenant,
            agent_url=agent_url,
        )
        release = self.store.get(message.plugin)
        # The author's code may say them.
        register_settings(release.config.settings)
        # How long a deployment waits for capacity is the worker's matter, and no plugin's model knows it.
        own = {"wait_for_capacity"} if isinstance(message, DeployMessage) else None
        params = message.params.model_dump(mode="json", exclude_unset=True, by_alias=True, exclude=own)
        request = request_for(release, message.action, params, access, job=run.job, language=message.language)
        return release, request

    def checksum_of(self, plugin: str) -> str:
        """The checksum of a release in the plugin store, `code@version`; raises `PluginError`."""
        return self.store.get(plugin).checksum

    def backend(self, tenant: str | None = None) -> BackendClient:
        """The worker's own client of the backend, for the tenant of a run."""
        return self._backend_of(tenant or self.settings.synapse_tenant)

    @lru_cache(maxsize=64)  # noqa: B019 - the services live as long as the process
    def _backend_of(self, tenant: str | None) -> BackendClient:
        settings = self.settings
        return BackendClient(
            settings.synapse_host,
            settings.synapse_access_token.get_secret_value(),
            tenant=tenant,
            timeout=DEPENDENCY_TIMEOUT,
            retries=STEP_RETRIES,
        )

    @once_per_instance
    def agents(self) -> Agents:
        """The agents of Ray clusters."""
        return Agents(self.settings, lambda tenant: self.backend(tenant), self.stream_limits)

    def agent(self, agent: int, tenant: str | None = None) -> AgentClient | None:
        """The worker's own client of a cluster's agent, see `Agents.client`."""
        return self.agents.client(agent, tenant or self.settings.synapse_tenant)


@once_per_process
def services() -> Services:
    """The services of this process."""
    return Services(settings(), current_app._get_current_object())


def make_host(settings: Settings, ray: RayConnection, packages: Packages, on_output: OnOutput) -> PluginHost:
    """WORKER_PLUGIN_HOST's host; `on_output` gets what plugin code says."""
    timeout = settings.worker_plugin_timeout_seconds
    ray_host = RayHost(ray, packages, timeout, on_output)
    return ray_host if settings.worker_plugin_host == "ray" else ProcessHost(ray_host, timeout, on_output)
