"""Why a pre-processor does not run yet, for the users of the runs that wait for it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import structlog

from shared.channels import job_key
from shared.messages import DeployMessage
from shared.statuses import JobStatus
from worker.platform import ClientError, NotFoundError, clean, error_type, shorten
from worker.platform.agent import AgentClient
from worker.pre_processor.decision import Dispatch, Observation
from worker.pre_processor.serve_application import PreProcessor
from worker.pre_processor.waitlist import WaitlistName
from worker.runs.bulkhead import bulkhead
from worker.services import Services
from worker.workflow.agent_task import CLUSTER
from worker.workflow.capacity import CapacityWaitlist, as_number
from worker.workflow.texts import Text, in_language

log = structlog.get_logger(__name__)

PROGRESS = "prepare"
"""The progress step that the wait belongs to."""

MAX_REASON_CHARS = 500


@dataclass(frozen=True)
class ClusterView:
    """What the agent says of the cluster and of the application; None and empty where it does not say it."""

    free_gpus: float | None = None
    total_gpus: float | None = None
    replicas: int | None = None
    reason: str = ""
    """The application's status on Ray Serve, and what Serve says about it."""


@dataclass(frozen=True)
class Diagnosis:
    """Where a deployment stands that runs wait for."""

    release: str
    job: str | None
    states: str
    """Where its job stands, and its application: statuses, which are the same in all languages."""
    cluster: ClusterView
    position: int | None
    """Of the deployment among those that wait for capacity, or of its message in the queue."""

    def text(self, language: str) -> str:
        """The message to a user."""
        details = "; ".join(self._details(language))
        return in_language(language, Text.DIAGNOSIS, release=self.release, details=details)

    def _details(self, language: str) -> Iterator[str]:
        cluster = self.cluster
        if self.job is None:
            yield in_language(language, Text.NOT_DISPATCHED)
        else:
            yield f"{in_language(language, Text.DEPLOYED_BY, job=self.job)} ({self.states})"
        if cluster.reason:
            yield cluster.reason
        if cluster.free_gpus is not None and cluster.total_gpus is not None:
            yield in_language(language, Text.FREE_GPUS, free=cluster.free_gpus, total=cluster.total_gpus)
        if cluster.replicas is not None:
            yield in_language(language, Text.REPLICAS, count=cluster.replicas)
        if self.position is not None:
            yield in_language(language, Text.QUEUE_POSITION, position=self.position)


def diagnose(name: WaitlistName, dispatch: Dispatch, seen: Observation, services: Services) -> Diagnosis:
    """Look at what a deployment waits for. Two requests to the agent, which may be away."""
    job, states, position = dispatch.job, [], None
    if job is not None:
        step, waits_for = services.redis.hmget(job_key(job), "step", "waiting_for")
        states = [str(state) for state in (seen.job_status, step, waits_for) if state]
        position = CapacityWaitlist(services.redis, name.tenant, name.agent).position(job)
        if position is None and seen.job_status is JobStatus.PENDING:
            queues = (DeployMessage.queue, DeployMessage.agent_queue(name.agent))
            position = sum(services.runs.publisher.queue_length(queue) for queue in queues) or None
    cluster = _look_at_cluster(name.target, name.tenant or None, services)
    return Diagnosis(name.target.release, job, ", ".join(states), cluster, position)


def _look_at_cluster(target: PreProcessor, tenant: str | None, services: Services) -> ClusterView:
    with bulkhead.acquire(CLUSTER) as acquired:
        if not acquired:
            return ClusterView()
        try:
            agent_client = services.agent(target.agent, tenant)
            return ClusterView() if agent_client is None else _cluster_view(agent_client, target.release)
        except (ClientError, OSError) as error:
            log.warning("cluster not looked at for a diagnosis", error_type=error_type(error))
            return ClusterView()


def _cluster_view(agent_client: AgentClient, app_name: str) -> ClusterView:
    resources = agent_client.get_cluster_resources()
    gpu = resources.get("gpu")
    gpu = gpu if isinstance(gpu, Mapping) else {}
    replicas = as_number(resources.get("total_serve_replicas"))
    return ClusterView(
        free_gpus=as_number(gpu.get("available_gpus")),
        total_gpus=as_number(gpu.get("total_gpus")),
        replicas=None if replicas is None else int(replicas),
        reason=_application_reason(agent_client, app_name),
    )


def _application_reason(agent_client: AgentClient, app_name: str) -> str:
    """The application's status, and Serve's explanation, which stands in the deployment's message."""
    try:
        application = agent_client.get_serve_application(app_name)
    except NotFoundError:
        return ""
    deployments = application.get("deployments")
    parts = list(deployments.values()) if isinstance(deployments, Mapping) else []
    messages = [part.get("message") for part in (application, *parts) if isinstance(part, Mapping)]
    said = [message for message in messages if isinstance(message, str) and message.strip()]
    status = application.get("status")
    texts = [*([status] if isinstance(status, str) else []), *said[:1]]
    return shorten(clean(": ".join(texts)), MAX_REASON_CHARS)
