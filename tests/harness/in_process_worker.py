"""A worker in this process: it delivers messages to the real engine, without a pool or a broker."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from celery import Celery
from celery.exceptions import Reject, Retry
from kombu.exceptions import OperationalError

from worker.runs.generations import GenerationClaim
from worker.runs.model import Lease, Outcome, Step
from worker.runs.runs import Runs
from worker.runs.store import CollectedMessage
from worker.workflow.delivery import Retry as RetryLater
from worker.workflow.task import StepTask


@dataclass(frozen=True)
class Published:
    """A message of a step that was published."""

    name: str
    queue: str
    kwargs: dict[str, Any]
    countdown: float
    priority: int = 0


class RecordingPublisher:
    """Keeps the messages of steps in place of a broker.

    `broken`: the broker is unavailable. `queue_lengths`: unread messages by queue. `before_publish` is called
    before each message is kept; it may raise, as if the process were killed.
    """

    def __init__(self) -> None:
        self.published: list[Published] = []
        self.is_redis, self.shares_redis = True, False
        self.broken = False
        self.queue_lengths: dict[str, int] = {}
        self.before_publish: Callable[[], None] = lambda: None

    def publish(
        self, step: Step, queue: str, kwargs: dict[str, Any], countdown: float = 0.0, priority: int = 0
    ) -> None:
        if self.broken:
            raise OperationalError("the broker is unavailable")
        self.before_publish()
        self.published.append(Published(step.name, queue, kwargs, countdown, priority))

    @contextmanager
    def collecting(self) -> Iterator[list[CollectedMessage] | None]:
        yield None

    def queue_length(self, queue: str) -> int:
        if self.broken:
            raise OperationalError("the broker is unavailable")
        return self.queue_lengths.get(queue, 0)

    def of(self, name: str) -> list[Published]:
        return [message for message in self.published if message.name == name]


class RecordingReports(list[tuple[str, float]]):
    """Keeps which jobs this process is to report, and after how many seconds."""

    def __call__(self, job: str, delay: float) -> None:
        self.append((job, delay))


@contextmanager
def celery_request(
    task: Any,
    kwargs: dict[str, Any],
    *,
    args: Sequence[Any] = (),
    message_id: str = "",
    routing_key: object = "deploy",
    redelivered: bool = False,
    priority: object = None,
    **more: Any,
) -> Iterator[None]:
    """During the block, `task.request` is that of a message with these arguments."""
    task.push_request(
        id=message_id or uuid4().hex,
        args=args,
        kwargs=kwargs,
        called_directly=False,
        delivery_info={
            "exchange": "",
            "routing_key": routing_key,
            "redelivered": redelivered,
            "priority": priority,
        },
        **more,
    )
    try:
        yield
    finally:
        task.pop_request()


@dataclass
class Delivery:
    """How a message ended: acknowledged, retried (published with a countdown), requeued or dropped.

    `outcome` and `error` are those of the step's function, if it was called.
    """

    ended: str = "acknowledged"
    countdown: float | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, Any] = field(default_factory=dict)
    """Of the retried message, those that are not Celery's."""
    outcome: Outcome | None = None
    error: BaseException | None = None
    failure: str | None = None
    """With what the task failed, as monitors show it. Its message is acknowledged all the same."""


class InProcessWorker:
    """Delivers messages of steps to the engine (`worker.workflow.task`) and returns how they ended."""

    def __init__(self, runs: Runs) -> None:
        app = Celery("in-process", broker="memory://", set_as_current=False)
        worker = self
        self.runs = runs
        self.broker_is_broken = False
        self.ended_runs: list[str] = []
        """Jobs of which a step's message was delivered after the end of the run."""

        class HarnessTask(StepTask):
            abstract = True

            @property
            def runs(self) -> Runs:
                return runs

            def on_message_after_end(self, job: str) -> None:
                worker.ended_runs.append(job)

            def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> None:
                if worker.broker_is_broken:
                    raise OperationalError("the broker is unavailable")
                self.request.retries_of_delivery.append((kwargs, options))

        @app.task(base=HarnessTask, bind=True, name="harness.step", shared=False)
        def step_task(self: HarnessTask, job: str, **_: Any) -> None: ...

        self.task = step_task

    def run_step(
        self,
        step: Step,
        function: Callable[[Any], Outcome],
        *,
        job: str = "42",
        part: str = "",
        redelivered: bool = False,
        kwargs: dict[str, Any] | None = None,
        headers: dict[str, Any] | None = None,
    ) -> Delivery:
        """Deliver a message of `step`, of the current generation unless `kwargs` has another one."""
        if kwargs is None:
            name = f"{step.name}:{part}" if part else step.name
            kwargs = {"job": job, "generation": self.runs.generations.newest(job, name)}
        delivery = Delivery()

        def recording(run: Any) -> Outcome:
            try:
                delivery.outcome = function(run)
            except BaseException as error:
                delivery.error = error
                raise
            return delivery.outcome

        job = kwargs["job"]
        self._deliver(
            delivery,
            kwargs,
            redelivered,
            lambda: self.task.run_step(step, job, recording, part=part),
            headers=headers or {},
        )
        return delivery

    def run_poll(
        self,
        claim: Callable[[int, bool], GenerationClaim],
        function: Callable[[int, Lease], RetryLater | None],
        *,
        lock: str,
        redelivered: bool = False,
        kwargs: dict[str, Any],
    ) -> Delivery:
        """Deliver a message of a poll that is no step of a run."""
        delivery = Delivery()
        self._deliver(delivery, kwargs, redelivered, lambda: self.task.run_poll(claim, function, lock=lock))
        return delivery

    def _deliver(
        self,
        delivery: Delivery,
        kwargs: dict[str, Any],
        redelivered: bool,
        call: Callable[[], None],
        **more: Any,
    ) -> None:
        retries: list[tuple[dict[str, Any], dict[str, Any]]] = []
        more["retries_of_delivery"] = retries
        with celery_request(self.task, kwargs, redelivered=redelivered, **more):
            try:
                call()
            except Retry:
                delivery.ended = "retried"
                delivery.kwargs, options = retries[-1]
                delivery.countdown, delivery.headers = options["countdown"], options["headers"]
            except Reject as reject:
                delivery.ended = "requeued" if reject.requeue else "dropped"
            except self.task.throws as failure:
                delivery.failure = str(failure)
        assert len(retries) == (delivery.ended == "retried"), "a delivery is retried once or not at all"

    def outcome_of(self, step: Step, function: Callable[[Any], Outcome], **delivery: Any) -> Outcome:
        """Deliver a message of `step`; the outcome of its function, or the error that it raised."""
        result = self.run_step(step, function, **delivery)
        if result.error is not None:
            raise result.error
        assert result.outcome is not None, f"{step.name} did not run: the delivery was {result.ended}"
        return result.outcome
