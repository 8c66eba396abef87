"""The Celery app and its settings, each with its reason."""

import sys
from typing import Any

import structlog
from celery import Celery, bootsteps, signals
from celery.exceptions import WorkerShutdown
from redis import RedisError

from shared.rabbitmq import ExistingQueue
from worker.broker import broker_settings, broker_url, message_rejected, step_unknown
from worker.broker.config import EX_CONFIG, QUEUES
from worker.logs.relay import LogRelayStep
from worker.maintenance import Maintenance
from worker.monitoring import log_setup
from worker.monitoring.http_server import HttpServerStep
from worker.monitoring.probes import ConnectedStep, StateStep
from worker.monitoring.redis_metrics import QueueStatsStep
from worker.monitoring.task_events import TaskEventsStep
from worker.pool import MinThreadsStep
from worker.redis_needs import RedisClusterError, reject_cluster
from worker.services import services
from worker.settings import Settings, SettingsError, settings
from worker.workflow.rejected_jobs import reject_undelivered, seconds_unknown
from worker.workflow.revocations import RevocationsStep

log = structlog.get_logger(__name__)


def make_app(settings: Settings) -> Celery:
    """The app for these settings."""
    # The transport that loses nothing comes with `amqp`; on RabbitMQ it is the stock one.
    app = Celery(
        "worker", broker=broker_url(settings.broker_url), amqp="worker.broker:AMQP", set_as_current=True
    )
    app.conf.update(
        # Work is data from other services: JSON and nothing that could carry code.
        accept_content=["json"],
        task_serializer="json",
        event_serializer="json",
        # What a step finds out is in the run's record; a result backend would be a second truth.
        task_ignore_result=True,
        result_backend=None,
        # A message is gone only after its step has sent the next one.
        task_acks_late=True,
        task_acks_on_failure_or_timeout=True,
        # With threads the whole process dies with its task, and the broker delivers again; with prefork a
        # task that kills its child would be retried for ever.
        task_reject_on_worker_lost=False,
        # Steps are short, so any free thread takes the next one.
        worker_prefetch_multiplier=1,
        # Plain durable queues of these names, so that a bare `send_task` just works.
        task_queues=[ExistingQueue(name, routing_key=name) for name in QUEUES],
        task_default_queue="control",
        task_create_missing_queues=True,
        # A step whose successor cannot be published keeps trying for about half a minute; a default policy
        # gives up within a second, and a restart of Redis takes longer.
        task_publish_retry=True,
        task_publish_retry_policy={
            "max_retries": 30,
            "interval_start": 0.2,
            "interval_step": 0.2,
            "interval_max": 1.0,
        },
        # What concerns the broker alone: its consumer, its reconnecting, its redelivery.
        **broker_settings(settings),
        # The one logging setup is ours.
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        # Returned values appear in events and logs; ours are None anyway.
        resultrepr_maxsize=64,
        # Only while a monitor asks for them, see `TaskEventsStep`.
        worker_send_task_events=False,
        # Modules that hold tasks, or wait for signals.
        imports=(
            "worker.monitoring.traces",
            "worker.workflow.control",
            "worker.deploy.tasks",
            "worker.logs.tasks",
            "worker.pre_processor.tasks",
            "worker.to_task.tasks",
            "worker.whole_run.tasks",
        ),
    )
    # A message that the broker's code cannot read reaches no task; it is rejected all the same.
    message_rejected.connect(reject_undelivered)
    step_unknown.connect(seconds_unknown)
    app.on_after_finalize.connect(_unregister_builtin_tasks)
    app.steps["worker"].update({MinThreadsStep, MaintenanceStep, LogRelayStep, StateStep, HttpServerStep})
    app.steps["consumer"].update({ConnectedStep, TaskEventsStep, RevocationsStep, QueueStatsStep})
    return app


def _unregister_builtin_tasks(sender: Celery, **_: Any) -> None:
    """Celery's own tasks (`celery.map`, `celery.chord`, ...) run and show whatever anybody publishes."""
    for name in [name for name in sender.tasks if name.startswith("celery.")]:
        sender.tasks.unregister(name)


def _reject_cluster() -> None:
    """End the worker when REDIS_URL is a Redis Cluster; that of the broker is its consumer's matter."""
    try:
        reject_cluster(services().redis)
    except RedisClusterError as error:
        log.critical(str(error))
        raise WorkerShutdown(EX_CONFIG) from None
    except RedisError as error:
        log.warning("Redis not checked", error_type=type(error).__name__)


class MaintenanceStep(bootsteps.StartStopStep):
    """Runs the sweep beside the pool, in the parent process of every worker."""

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._maintenance = Maintenance()

    def start(self, parent: Any) -> None:  # noqa: ARG002 - the bootstep's signature
        """The worker is up."""
        _reject_cluster()
        self._maintenance.start()

    def stop(self, parent: Any) -> None:  # noqa: ARG002 - the bootstep's signature
        """The worker goes down."""
        self._maintenance.stop()

    terminate = stop


@signals.setup_logging.connect
def _configure_logging(loglevel: int | str = "INFO", **_: Any) -> None:
    log_setup.configure(loglevel)


def _load_settings() -> Settings:
    try:
        return settings()
    except SettingsError as error:
        print(f"synapse-worker cannot start:\n{error}", file=sys.stderr)
        raise SystemExit(EX_CONFIG) from None


app = make_app(_load_settings())
