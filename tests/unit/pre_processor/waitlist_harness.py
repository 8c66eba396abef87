"""Runs that wait for one pre-processor: their steps and polls as a worker runs them, without Celery."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakeredis import FakeRedis

from shared.messages import ToTaskMessage
from shared.statuses import JobStatus
from tests.harness.in_process_worker import InProcessWorker, RecordingPublisher
from worker.pre_processor.dispatch import detect, dispatch
from worker.pre_processor.poll import await_ready
from worker.pre_processor.waitlist import (
    AWAIT_READY,
    DETECT,
    DISPATCH,
    PRE_PROCESSOR,
    PreProcessorRun,
    Waitlist,
    WaitlistName,
)
from worker.runs.model import Finish, Lease, Outcome, WorkflowStep
from worker.runs.runs import Runs, Timing
from worker.settings import Settings
from worker.testing import FakeAgent, FakeBackend
from worker.workflow.task import Retry

NAME = WaitlistName("", 1, "digits", "1.0.0")
PARAMS = {"name": "n", "project": 1, "agent": 1, "method": "inference", "pre_processor": 7, "model": 3}


@dataclass
class FakeServices:
    redis: FakeRedis
    runs: Runs
    settings: Settings
    backend_client: FakeBackend = field(default_factory=FakeBackend)
    agent_client: FakeAgent | Exception | None = field(default_factory=FakeAgent)

    def agent(self, agent: int, tenant: str | None = None) -> FakeAgent | None:
        if isinstance(self.agent_client, Exception):
            raise self.agent_client
        return self.agent_client

    def backend(self, tenant: str | None = None) -> FakeBackend:
        return self.backend_client


def make_services(redis: FakeRedis, sender: RecordingPublisher, plugins: Path) -> FakeServices:
    settings = Settings(
        synapse_host="http://backend", synapse_access_token="token-of-the-worker", plugins_dir=plugins
    )
    return FakeServices(redis, Runs(redis, sender, Timing(60.0)), settings)


@dataclass(frozen=True)
class PublishedPoll:
    """The message with which a poll is retried, after `countdown` seconds."""

    countdown: float
    generation: int
    redelivered: bool


class WaitlistHarness:
    """Workers with runs that need the same pre-processor."""

    def __init__(self, services: FakeServices, sender: RecordingPublisher) -> None:
        self.services, self.sender = services, sender
        self.runs, self.backend = services.runs, services.backend_client
        self.waitlist = Waitlist(services.redis, NAME)
        self.worker = InProcessWorker(self.runs)

    @property
    def agent(self) -> FakeAgent:
        assert isinstance(self.services.agent_client, FakeAgent)
        return self.services.agent_client

    def accept(self, job: str, priority: int = 0, **fields: Any) -> None:
        """A run's message is accepted."""
        message = {"job": job, "plugin": "notes@1.0.0", "params": PARAMS, **fields}
        self.runs.store.accept(ToTaskMessage.model_validate(message), "to_task", priority)

    def detect(self, job: str, **fields: Any) -> Outcome | None:
        """A run is accepted and looks for its pre-processor."""
        self.accept(job, **fields)
        return self.step(DETECT, job, detect)

    def dispatch(self, job: str) -> Outcome | None:
        """A run joins the waiting list."""
        return self.step(DISPATCH, job, dispatch)

    def wait(self, *jobs: str) -> None:
        """Runs are accepted, look for their pre-processor, and join the waiting list."""
        for job in jobs:
            self.detect(job)
            self.dispatch(job)

    def step(
        self, step: WorkflowStep[Any, Any], job: str, function: Callable[..., Outcome]
    ) -> Outcome | None:
        """The outcome of a step's message that the engine delivers; None when the step was not run."""
        self._consume(step, job)
        delivery = self.worker.run_step(step, lambda run: function(run, self.services), job=job)
        if isinstance(delivery.error, RuntimeError):
            return Finish(JobStatus.FAILED, {"error": str(delivery.error)})
        if delivery.error is not None:
            raise delivery.error
        assert delivery.outcome is not None or delivery.ended == "acknowledged", delivery
        return delivery.outcome

    def _consume(self, step: WorkflowStep[Any, Any], job: str) -> None:
        """Take the message that is delivered out of the queue, if it was published."""
        for message in self.sender.of(step.name):
            if message.kwargs["job"] == job:
                self.sender.published.remove(message)
                return

    def poll(
        self, generation: int | None = None, *, redelivered: bool = False, attempt: int = 0
    ) -> PublishedPoll | None:
        """Deliver the newest poll that was published, or the one of `generation`; returns its retry."""
        if generation is None:
            generation = self.sender.of(AWAIT_READY.name)[-1].kwargs["generation"]

        def function(claimed: int, _: Lease) -> Retry | None:
            following = await_ready(self.waitlist, claimed, attempt, self.services).following
            return following and Retry(following.countdown, {"generation": following.generation})

        kwargs = {"room": NAME.key, "generation": generation}
        delivery = self.worker.run_poll(
            self.waitlist.claim_poll,
            function,
            lock=self.waitlist.lock,
            redelivered=redelivered,
            kwargs=kwargs,
        )
        if delivery.ended == "acknowledged":
            return None
        assert delivery.countdown is not None, delivery
        return PublishedPoll(
            delivery.countdown, delivery.kwargs["generation"], bool(delivery.kwargs.get("redelivered"))
        )

    def run(self, job: str) -> PreProcessorRun:
        return PRE_PROCESSOR.typed(self.runs.store.load(job))

    def error(self, job: str) -> str | None:
        """The error with which a run has ended."""
        end = self.run(job).end
        return end.error if end else None

    def waiting(self) -> list[str]:
        return self.waitlist.waiters()

    def resumed(self) -> list[str]:
        """Runs whose next step was published."""
        return [sent.kwargs["job"] for sent in self.sender.of("to_task.fetch_tasks")]

    def redispatching(self) -> list[str]:
        """Runs that a poll has sent to dispatch anew."""
        return [sent.kwargs["job"] for sent in self.sender.of(DISPATCH.name)]
