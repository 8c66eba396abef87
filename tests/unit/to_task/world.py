"""A backend, a plugin host and the services of a process in memory; a hand that delivers a run's messages."""

import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

from fakeredis import FakeRedis

from shared.channels import job_key
from shared.messages import ToTaskMessage
from tests.harness.in_process_worker import InProcessWorker, RecordingPublisher
from worker.per_process import RecentlyUsed
from worker.plugins import PluginProcessDiedError
from worker.pre_processor.serve_application import PreProcessor
from worker.runs.ends import RunEnd
from worker.runs.model import Continue, ContinueInParts, Finish, Outcome, Reschedule, Suspend
from worker.runs.runs import Runs, Timing
from worker.services import Services
from worker.testing import FakeBackend, FakePluginHost
from worker.to_task.annotate import annotate, dispatch_chunks
from worker.to_task.clients import AnnotationRuntime, EventLoopThread, TenantBackend, Throttle
from worker.to_task.discover import fetch_tasks
from worker.to_task.ledger import RedisLedger
from worker.to_task.results import finalize
from worker.to_task.steps import ANNOTATE, FETCH_TASKS, FINALIZE, SPREAD, TO_TASK, ToTaskRun
from worker.to_task.window import RequestWindows

JOB = "42"
Row = dict[str, Any]


class KilledError(BaseException):
    """The process is gone."""


class ChunkPublisher(RecordingPublisher):
    """Keeps what is published; after `dies_after` messages the process is killed."""

    def __init__(self) -> None:
        super().__init__()
        self.dies_after: int | None = None
        self.before_publish = self._count_down

    def _count_down(self) -> None:
        if self.dies_after is not None:
            if self.dies_after == 0:
                raise KilledError
            self.dies_after -= 1

    def chunks(self) -> list[int]:
        """Numbers of the chunks that were published."""
        return [message.kwargs["chunk"] for message in self.of("to_task.annotate")]


@dataclass
class World:
    """One run in one process."""

    redis: FakeRedis
    loop: EventLoopThread
    backend: FakeBackend = field(default_factory=FakeBackend)
    host: FakePluginHost = field(default_factory=FakePluginHost)
    sender: ChunkPublisher = field(default_factory=ChunkPublisher)
    chunk: int = 10
    params: Row = field(default_factory=dict)
    priority: int = 0
    options: Row = field(default_factory=dict)
    """Of the message, beside its params."""

    def __post_init__(self) -> None:
        self.host.crash = PluginProcessDiedError("ActorDiedError", "the process of digits@1.0.0 died")
        self.backend.add_application()
        self.runs = Runs(self.redis, self.sender, Timing(60.0))
        self.worker = InProcessWorker(self.runs)
        settings = SimpleNamespace(
            worker_annotate_chunk=self.chunk,
            worker_visibility_timeout_seconds=60.0,
            worker_pre_processor_timeout_seconds=180.0,
            worker_plugin_max_failures_in_row=10,
            worker_ended_runs_max_age_seconds=7 * 24 * 60 * 60.0,
            synapse_tenant=None,
        )
        self.settings = settings
        self.services = cast(
            Services,
            SimpleNamespace(
                redis=self.redis,
                runs=self.runs,
                settings=settings,
                host=self.host,
                backend=lambda tenant=None: self.backend,
                declared_params=RecentlyUsed(),
                action_of=lambda run: (
                    SimpleNamespace(checksum="c1"),
                    SimpleNamespace(
                        entrypoint="plugin.ToTask",
                        params=run.message.params.model_dump(exclude_unset=True, by_alias=True),
                    ),
                ),
            ),
        )
        backends = cast(Any, SimpleNamespace(of=lambda tenant: self.backend.on_loop))
        self.run_end = RunEnd()
        ends = cast(Any, SimpleNamespace(watching=lambda job: nullcontext(self.run_end)))
        self.runtime = AnnotationRuntime(self.loop, backends, ends, Throttle(0.0))
        self.accept(**self.params)

    def limit_requests(self) -> RequestWindows:
        """Let annotation requests go through the windows of a process; returns these."""
        windows = RequestWindows(64)
        tenant = TenantBackend(lambda timeout: cast(Any, self.backend.on_loop), windows)
        self.runtime.backends = cast(Any, SimpleNamespace(of=lambda tenant_name: tenant))
        return windows

    def accept(self, **params: Any) -> None:
        given = {"name": "n", "project": 1, "agent": 3, "target_specification_name": "label", **params}
        message = ToTaskMessage.model_validate(
            {"job": JOB, "plugin": "digits@1.0.0", "params": given, **self.options}
        )
        self.runs.store.accept(message, "to_task", self.priority)
        if given.get("method") == "inference":
            options: dict[str, Any] = {}
            if "batch" in given:
                options["batch"] = {"max_batch_size": given["batch"]}
            if "max_ongoing_requests" in given:
                options["max_ongoing_requests"] = given["max_ongoing_requests"]
            config = {"code": "pre", "actions": {"inference": {"serve_options": options}}}
            pre_processor = PreProcessor("pre", "2.0.0", config, 3)
            self.runs.store.update_state(self.run, replace(self.run.state, pre_processor=pre_processor))

    @property
    def run(self) -> ToTaskRun:
        return TO_TASK.typed(self.runs.store.load(JOB))

    @property
    def ledger(self) -> RedisLedger:
        return RedisLedger(self.redis, JOB)

    def fetch(self) -> Outcome:
        return self.worker.outcome_of(FETCH_TASKS, lambda run: self.fetch_pages(run))

    def fetch_pages(self, run: ToTaskRun, clock: Callable[[], float] = time.monotonic) -> Outcome:
        return fetch_tasks(run, self.services, dispatch_chunks, clock)

    def collect_ids(self) -> None:
        """Read all pages; no chunk is published."""
        fetch_tasks(self.run, self.services, lambda *_: Suspend())

    def dispatch_again(self) -> Outcome:
        return self.worker.outcome_of(SPREAD, lambda run: dispatch_chunks(run, self.services))

    def annotate(self, chunk: int) -> Outcome:
        return self.worker.outcome_of(
            ANNOTATE, lambda run: annotate(run, chunk, self.services, self.runtime), part=str(chunk)
        )

    def annotate_fully(self, chunk: int, deliveries: int = 200) -> tuple[list[float], Outcome]:
        """Deliver the chunk until it asks for no more; the countdowns between, and what came of it."""
        countdowns: list[float] = []
        for _ in range(deliveries):
            outcome = self.annotate(chunk)
            if not isinstance(outcome, Reschedule):
                return countdowns, outcome
            countdowns.append(outcome.countdown)
        raise AssertionError(f"chunk {chunk} never ends")

    def collect(self) -> None:
        """Up to the open window."""
        outcome: Outcome = Reschedule(0)
        while isinstance(outcome, Reschedule):
            outcome = self.fetch()
        assert isinstance(outcome, ContinueInParts), outcome

    def work(self) -> Finish:
        """The whole run, each message delivered once, to its end."""
        self.collect()
        return self.annotate_published()

    def annotate_in_time(self, chunk: int, seconds: float = 60.0) -> Outcome:
        """Deliver the chunk after each countdown until it asks for no more, within `seconds`."""
        end = time.monotonic() + seconds
        while isinstance(outcome := self.annotate(chunk), Reschedule):
            assert time.monotonic() + outcome.countdown < end, "the chunk takes too long"
            threading.Event().wait(outcome.countdown)
        return outcome

    def annotate_published(self) -> Finish:
        """Every published chunk, and those that follow, to the end of the run."""
        delivered = 0
        while True:
            chunks = self.sender.chunks()
            assert delivered < len(chunks), "the run is stuck"
            _, outcome = self.annotate_fully(chunks[delivered])
            delivered += 1
            if isinstance(outcome, Continue):
                end = self.worker.outcome_of(FINALIZE, lambda run: finalize(run, self.services))
                assert isinstance(end, Finish)
                return end

    def end(self) -> None:
        """The user stops the run."""
        from worker.runs.reports.reporter import stop

        stop(JOB, self.runs)

    def record(self) -> Row:
        """The public record."""
        return cast(Row, self.redis.hgetall(job_key(JOB)))
