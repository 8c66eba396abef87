"""Services in memory, and a runner that delivers messages to the real tasks."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from celery import Celery
from celery.exceptions import Reject, Retry
from fakeredis import FakeRedis
from kombu.exceptions import OperationalError

from shared.channels import dead_letters_key
from tests.harness.in_process_worker import Delivery, RecordingPublisher, RecordingReports, celery_request
from worker.deploy.plan import DEPLOY
from worker.plugins import ReleaseNotFoundError
from worker.runs.reports.sender import ReportSender
from worker.runs.runs import Runs, Timing
from worker.workflow.intake import begin_run

MESSAGE: dict[str, Any] = {"job": 42, "plugin": "digits@1.0.0", "agent": 1}


class Backend:
    def __init__(self) -> None:
        self.status = "PENDING"
        self.patches: list[dict[str, Any]] = []
        self.tenants: list[str | None] = []
        self.get_error: Exception | None = None
        self.patch_error: Exception | None = None
        self.when_patched: Callable[[], object] = lambda: None

    def get_job(self, job: str) -> dict[str, Any]:
        if self.get_error is not None:
            raise self.get_error
        return {"id": job, "status": self.status}

    def update_job(self, job: str, **fields: Any) -> dict[str, Any]:
        if self.patch_error is not None:
            raise self.patch_error
        self.patches.append(fields)
        self.status = fields.get("status", self.status)
        self.when_patched()
        return {"id": job, "status": self.status}

    def create_logs(self, entries: list[dict[str, Any]]) -> None: ...


class Release:
    def action(self, name: str) -> str:
        if name not in {"deployment", "to_task"}:
            raise ReleaseNotFoundError(f"the release has no action {name!r}")
        return name


class Store:
    def __init__(self) -> None:
        self.error: Exception | None = None

    def get(self, name: str) -> Release:
        if self.error is not None:
            raise self.error
        if name != "digits@1.0.0":
            raise ReleaseNotFoundError(f"there is no release {name}")
        return Release()


@dataclass
class FakeServices:
    redis: FakeRedis
    sender: RecordingPublisher = field(default_factory=RecordingPublisher)
    reports_due: RecordingReports = field(default_factory=RecordingReports)
    platform: Backend = field(default_factory=Backend)
    store: Store = field(default_factory=Store)
    settings: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(ray_address=None, worker_agent=None, worker_webhook_url=None)
    )

    def __post_init__(self) -> None:
        self.runs = Runs(self.redis, self.sender, Timing(60), self.reports_due)
        self.reports = ReportSender(self.runs, self.backend)

    def backend(self, tenant: str | None = None) -> Backend:
        self.platform.tenants.append(tenant)
        return self.platform


class TaskRunner:
    """Delivers messages to a task by its name, as a worker would."""

    def __init__(self, app: Celery, monkeypatch: Any) -> None:
        self._app = app
        self._monkeypatch = monkeypatch
        self.broken = False
        self.routing_key: object = "deploy"
        self.priority: object = None
        self.published: list[dict[str, Any]] = []

    def deliver(self, name: str, *args: Any, message_id: str | None = None, **kwargs: Any) -> Delivery:
        return self.deliver_all(name, kwargs, args, message_id)

    def deliver_all(
        self,
        name: str,
        kwargs: dict[str, Any],
        args: tuple[Any, ...] = (),
        message_id: str | None = None,
        headers: dict[str, Any] | None = None,
        retries_before: int = 0,
        redelivered: bool = False,
    ) -> Delivery:
        """`deliver` for arguments of any name."""
        task = self._app.tasks[name]
        retries: list[tuple[dict[str, Any], dict[str, Any]]] = []

        def apply_async(args: Any = None, kwargs: Any = None, **options: Any) -> None:
            if self.broken:
                raise OperationalError("the broker is unavailable")
            retries.append((kwargs, options))

        self._monkeypatch.setattr(task, "apply_async", apply_async, raising=False)
        with celery_request(
            task,
            kwargs,
            args=args,
            message_id=message_id or "",
            routing_key=self.routing_key,
            priority=self.priority,
            headers=headers or {},
            retries=retries_before,
            redelivered=redelivered,
        ):
            try:
                task(*args, **kwargs)
            except Retry:
                published, options = retries[-1]
                return Delivery("retried", options["countdown"], published, options["headers"])
            except Reject as reject:
                return Delivery("requeued" if reject.requeue else "dropped")
            except task.throws as failure:
                return Delivery(failure=str(failure))
        return Delivery("acknowledged")


Deliver = Callable[..., Delivery]


def dead_letters(redis: FakeRedis) -> list[dict[str, str]]:
    return [fields for _, fields in redis.xrange(dead_letters_key())]


def deliver_and_begin(task_runner: TaskRunner, services: FakeServices) -> bool:
    """Deliver a deploy message, and begin its run; whether it goes on."""
    task_runner.deliver("test.deploy", **MESSAGE)
    return begin_run(DEPLOY.typed(services.runs.store.load("42")), services)
