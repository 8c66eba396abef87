"""A backend in memory, and a hand that delivers the messages of a waiting room as workers would."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakeredis import FakeRedis

from shared.messages import ToTaskMessage
from shared.statuses import JobStatus
from tests.unit.runs.runs_helpers import RecordingSender
from worker.pre_processor import dispatch as detection
from worker.pre_processor import poll as waiting
from worker.pre_processor.dispatch import dispatch
from worker.pre_processor.poll import NextPoll
from worker.pre_processor.waitlist import (
    AWAIT_READY,
    DETECT,
    DISPATCH,
    PRE_PROCESSOR,
    PreProcessorRun,
    Waitlist,
    WaitlistName,
)
from worker.runs.keys import lock_key
from worker.runs.model import ClaimStatus, End, Finish, Outcome, WorkflowStep
from worker.runs.runs import Runs, Timing
from worker.settings import Settings
from worker.workflow.task import user_message

NAME = WaitlistName("", 1, "digits", "1.0.0")
PARAMS = {"name": "n", "project": 1, "agent": 1, "method": "inference", "pre_processor": 7, "model": 3}


class FakeBackend:
    """Answers from its fields; an exception in `broken` is raised instead, by name of the call."""

    def __init__(self) -> None:
        self.release: Any = {"id": 7, "version": "1.0.0", "config": {"code": "digits", "actions": {}}}
        self.records: list[dict[str, Any]] = []
        self.jobs: dict[str, str] = {}
        self.dispatched: list[tuple[str, dict[str, Any]]] = []
        self.dispatch_answer: Callable[[int], Any] = lambda count: {"id": 100 + count}
        self.broken: dict[str, Exception] = {}
        self.looks = 0

    def get_plugin_release(self, release: int | str) -> dict[str, Any]:
        self._break("get_plugin_release")
        return self.release

    def list_serve_applications(self, **query: Any) -> dict[str, Any]:
        self.looks += 1
        self._break("list_serve_applications")
        assert query == {"plugin_code": "digits", "job__agent": 1}
        return {"results": [dict(record) for record in self.records]}

    def run_plugin(self, code: str, data: Any) -> Any:
        self.dispatched.append((code, dict(data)))
        self._break("run_plugin")
        return self.dispatch_answer(len(self.dispatched))

    def get_job(self, job: int | str) -> dict[str, Any]:
        self._break("get_job")
        return {"status": self.jobs.get(str(job), "RUNNING")}

    def _break(self, call: str) -> None:
        if call in self.broken:
            raise self.broken[call]

    def runs_now(self, job: int = 101, **record: Any) -> None:
        self.records.append({"id": 1, "status": "RUNNING", "job": job, "data": None, **record})


@dataclass
class FakeServices:
    redis: FakeRedis
    runs: Runs
    settings: Settings
    api: FakeBackend = field(default_factory=FakeBackend)

    def backend(self, tenant: str | None = None) -> FakeBackend:
        return self.api


def make_services(redis: FakeRedis, sender: RecordingSender, plugins: Path, **settings: Any) -> FakeServices:
    given = {
        "synapse_host": "http://backend",
        "synapse_access_token": "token-of-the-worker",
        "plugins_dir": plugins,
        **settings,
    }
    return FakeServices(redis, Runs(redis, sender, Timing(60.0)), Settings(**given))


class Hall:
    """Workers around one room."""

    def __init__(self, services: FakeServices, sender: RecordingSender) -> None:
        self.services, self.sender = services, sender
        self.runs, self.api = services.runs, services.api
        self.room = Waitlist(services.redis, NAME)

    def enter(self, job: str) -> None:
        """A run is taken in and looks for its pre-processor."""
        self.accept(job)
        self.step(DETECT, job, detection.detect)

    def accept(self, job: str, **fields: Any) -> None:
        message = {"job": job, "plugin": "notes@1.0.0", "params": PARAMS, **fields}
        self.runs.store.accept(ToTaskMessage.model_validate(message), "to_task")

    def wait(self, job: str) -> Outcome | None:
        """A run goes into the room."""
        return self.step(DISPATCH, job, dispatch)

    def step(
        self, step: WorkflowStep[Any, Any], job: str, function: Callable[..., Outcome], generation: int = 0
    ) -> Any:
        """What a worker does with a step's message, without Celery: None when it drops out."""
        token = self.runs.locks.new_token()
        begun = self.runs.store.claim_step(job, step, "", token, 30.0, generation, False)
        if begun.run is None:
            assert begun.status is not ClaimStatus.LOCKED
            return None
        try:
            outcome: Any = function(step.workflow.typed(begun.run), self.services)
        except RuntimeError as error:
            self.runs.finish(job, End(JobStatus.FAILED, {"error": user_message(error)}), step)
            return Finish(JobStatus.FAILED, {"error": str(error)})
        finally:
            self.services.redis.delete(lock_key(job, step.name))
        return outcome

    def poll(self, generation: int | None = None, *, redelivered: bool = False) -> NextPoll | None:
        """The newest poll that was sent, or the one of `generation`."""
        if generation is None:
            generation = self.sender.of(AWAIT_READY.name)[-1].kwargs["generation"]
        return waiting.await_ready(NAME.key, generation, self.services, redelivered=redelivered, attempt=0)

    def run(self, job: str) -> PreProcessorRun:
        return PRE_PROCESSOR.typed(self.runs.store.load(job))

    def error(self, job: str) -> str | None:
        end = self.run(job).end
        return end.error if end else None

    def waiting(self) -> list[str]:
        return [job for job, _ in self.room.waiters()]

    def sent_on(self) -> list[str]:
        return [sent.kwargs["job"] for sent in self.sender.of("to_task.fetch_tasks")]
