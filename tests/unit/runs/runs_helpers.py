"""A recorded sender, and a hand that delivers messages of steps as a worker would."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from celery import Celery
from celery.exceptions import Reject, Retry
from kombu.exceptions import OperationalError

from shared.messages import DeployMessage
from worker.runs.model import Outcome, Run, Step, Suspend, Workflow, WorkflowStep
from worker.runs.runs import Runs
from worker.runs.state import RunState, stored_field
from worker.workflow.task import StepTask

VISIBILITY_TIMEOUT = 60.0


@dataclass(frozen=True)
class FoundState(RunState):
    """The state of a workflow of these tests."""

    application: dict[str, int] | None = None
    tries: int = stored_field("attempts", 0)


DEPLOY = Workflow(DeployMessage, FoundState)
FIRST = DEPLOY.step("deploy.first", 10)
SECOND = DEPLOY.step("deploy.second", 20)
CHUNK = DEPLOY.step("to_task.chunk", 20, queue="annotate", has_parts=True)


@dataclass(frozen=True)
class Sent:
    name: str
    queue: str
    kwargs: dict[str, Any]
    countdown: float


class RecordingSender:
    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.broken = False
        self.unread_of: dict[str, int] = {}

    def publish(self, step: Step, queue: str, kwargs: dict[str, Any], countdown: float = 0.0) -> None:
        if self.broken:
            raise OperationalError("the broker is away")
        self.sent.append(Sent(step.name, queue, kwargs, countdown))

    def queue_length(self, queue: str) -> int:
        if self.broken:
            raise OperationalError("the broker is away")
        return self.unread_of.get(queue, 0)

    def of(self, name: str) -> list[Sent]:
        return [sent for sent in self.sent if sent.name == name]


@dataclass
class Delivery:
    """What became of a message: acknowledged, again (published with a countdown), requeued or dropped."""

    ended: str
    countdown: float | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)


class NeighbourAwayError(Exception):
    pass


class Courier:
    """Delivers messages of steps to a task."""

    def __init__(self, runs: Runs) -> None:
        app = Celery("test", broker="memory://", set_as_current=False)
        self.runs = runs
        self.published: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.broken = False
        self.after_end: list[str] = []
        courier = self

        class TestedTask(StepTask):
            abstract = True
            transient = (NeighbourAwayError,)

            @property
            def runs(self) -> Runs:
                return runs

            def on_message_after_end(self, job: str) -> None:
                courier.after_end.append(job)

            def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> None:
                if courier.broken:
                    raise OperationalError("the broker is away")
                courier.published.append((kwargs, options))

        @app.task(base=TestedTask, bind=True, name="a.step", shared=False)
        def a_step(self: TestedTask, job: str, **_: Any) -> None: ...

        self.task = a_step

    def deliver(
        self,
        step: WorkflowStep[Any, Any],
        function: Callable[[Run], Outcome] = lambda run: Suspend(),
        *,
        part: str = "",
        redelivered: bool = False,
        kwargs: dict[str, Any] | None = None,
    ) -> Delivery:
        kwargs = {"job": "42"} if kwargs is None else kwargs
        self.task.push_request(
            id=uuid4().hex,
            args=[],
            kwargs=kwargs,
            called_directly=False,
            delivery_info={"exchange": "", "routing_key": "deploy", "redelivered": redelivered},
        )
        before = len(self.published)
        try:
            self.task.run_step(step, kwargs["job"], function, part=part)
        except Retry:
            assert len(self.published) == before + 1
            again, options = self.published[-1]
            return Delivery("again", options["countdown"], again)
        except Reject as reject:
            return Delivery("requeued" if reject.requeue else "dropped")
        finally:
            self.task.pop_request()
        assert len(self.published) == before
        return Delivery("acknowledged")
