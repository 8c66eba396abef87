"""A backend, a plugin host and the services of a process in memory; a hand that delivers a run's messages."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from fakeredis import FakeRedis

from shared.channels import job_key
from shared.messages import ToTaskMessage
from worker.plugins import PluginCallError
from worker.runs.model import Continue, Finish, Outcome, Reschedule, Run, Step, Suspend
from worker.runs.runs import Runs, Timing
from worker.services import Services
from worker.to_task.annotate import annotate, spread
from worker.to_task.clients import Crew, LoopThread, Pace
from worker.to_task.discover import fetch_tasks
from worker.to_task.ledger import RedisLedger
from worker.to_task.results import finalize

JOB = "42"
Row = dict[str, Any]


def image_and_label(task: int) -> Row:
    return {
        "image": {"url": f"http://files/{task}.png", "is_primary": True, "file_name_original": f"{task}.png"},
        "label": {"url": f"http://files/{task}.json", "is_primary": False, "filename": f"{task}.json"},
    }


class FakeBackend:
    """Both of the platform's clients. `fails`: by call and task, the errors that come before the answer."""

    def __init__(self, tasks: Sequence[int] = ()) -> None:
        self.tasks = list(tasks)
        self.files: Callable[[int], Any] = image_and_label
        self.files_in_task = True
        self.page = 1000
        self.pages: list[Row] | None = None
        self.project: Row = {"id": 1, "data_collection": 7}
        self.specifications = ["image", "label"]
        self.fails: dict[tuple[str, int], deque[Exception]] = {}
        self.away: Exception | None = None
        self.answers: Callable[[Row], Any] = lambda call: {"seen": call["json"].get("image_path")}
        self.written: list[tuple[int, Any, str | None]] = []
        self.calls: Counter[str] = Counter()
        self.runs: list[tuple[str, Row]] = []
        self.application = "RUNNING"
        self.in_flight: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.before_write: Callable[[int], None] = lambda task: None

    def fail(self, call: str, task: int, error: Exception, times: int = 10**6) -> None:
        self.fails[call, task] = deque([error] * min(times, 1000))

    # the blocking client

    def get_project(self, project: int) -> Row:
        self._raise("get_project", project)
        return self.project

    def get_data_collection(self, collection: int) -> Row:
        self._raise("get_data_collection", collection)
        return {"id": collection, "file_specifications": [{"name": name} for name in self.specifications]}

    def list_tasks(
        self, filters: Mapping[str, Any], project: int, page_size: int = 100, url: str | None = None
    ) -> Row:
        self._raise("list_tasks", 0)
        number = int(url.rpartition("=")[2]) if url else 0
        if self.pages is not None:
            return self.pages[number]
        size = min(page_size, self.page)
        ids = self.tasks[number * size : (number + 1) * size]
        more = (number + 1) * size < len(self.tasks)
        link = f"http://backend/sdk/tasks/?page={number + 1}" if more else None
        return {"count": len(self.tasks), "next": link, "results": [{"id": task} for task in ids]}

    def list_serve_applications(self, **query: Any) -> Row:
        self._raise("list_serve_applications", 0)
        return {"results": [{"id": 1, "status": self.application}] if self.application else []}

    # the client on the loop

    async def get_task(self, task: int) -> Row:
        await self._call("get_task", task)
        unit: Row = {"id": task + 1_000_000}
        if self.files_in_task:
            unit["files"] = self.files(task)
        return {"id": task, "data": None, "data_unit": unit}

    async def get_data_unit(self, data_unit: int) -> Row:
        await self._call("get_data_unit", data_unit)
        return {"id": data_unit, "files": self.files(data_unit - 1_000_000)}

    async def annotate_task_data(self, task: int, data: Mapping[str, Any], schema: str | None = None) -> Row:
        self.before_write(task)
        await self._call("annotate_task_data", task)
        self.written.append((task, dict(data), schema))
        return {"id": task}

    async def annotate(
        self, task: int, data: Mapping[str, Any], schema: str | None, record: Callable[[], Awaitable[None]]
    ) -> None:
        await self.annotate_task_data(task, data, schema)
        await record()

    async def run_plugin(self, code: str, data: Mapping[str, Any]) -> Any:
        self.runs.append((code, dict(data)))
        await self._call("run_plugin", 0)
        return self.answers(data["params"])

    async def _call(self, call: str, task: int) -> None:
        self.in_flight[call] += 1
        self.peak[call] = max(self.peak[call], self.in_flight[call])
        try:
            for _ in range(3):
                await asyncio.sleep(0)
            self._raise(call, task)
        finally:
            self.in_flight[call] -= 1

    def _raise(self, call: str, task: int) -> None:
        self.calls[call] += 1
        if self.away is not None:
            raise self.away
        waiting = self.fails.get((call, task))
        if waiting:
            raise waiting.popleft()

    @property
    def written_ids(self) -> list[int]:
        return [task for task, _, _ in self.written]


class FakeHost:
    """A plugin that names its file, or repeats an answer. `kills`: tasks that end its process."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, int]] = []
        self.items: list[Row] = []
        self.bad: set[int] = set()
        self.kills: set[int] = set()
        self.refusal: PluginCallError | None = None

    def call(self, release: Any, request: Any, operation: str, payload: Any) -> Any:
        if self.refusal is not None:
            raise self.refusal
        return {"ok": True}

    def call_batch(self, release: Any, request: Any, operation: str, payload: list[Row]) -> list[Row]:
        self.batches.append((operation, len(payload)))
        self.items += payload
        if any(item["task_data"]["id"] in self.kills for item in payload):
            raise PluginCallError("ActorDiedError", "the process of digits@1.0.0 died")
        return [self._answer(operation, item) for item in payload]

    def _answer(self, operation: str, item: Row) -> Row:
        if item["task_data"]["id"] in self.bad:
            return {"error": "ValueError: no digit in it"}
        if operation == "convert_from_files":
            return {"ok": {"from": item["data_file_name"]}}
        if operation == "prepare_inference":
            body = {"image_path": item["primary_file_url"]}
            return {"ok": {"model": item["model_id"], "method": "post", "json": body}}
        return {"ok": {"said": item["inference_data"]}}


@dataclass(frozen=True)
class Sent:
    name: str
    queue: str
    kwargs: Row


class Sender:
    """Keeps what is sent; `dies_after` messages it raises, as a process that is killed."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.dies_after: int | None = None

    def publish(self, step: Step, queue: str, kwargs: Row, countdown: float = 0.0) -> None:
        if self.dies_after is not None:
            if self.dies_after == 0:
                raise KilledError
            self.dies_after -= 1
        self.sent.append(Sent(step.name, queue, kwargs))

    def chunks(self) -> list[int]:
        """Numbers of the chunks that were sent."""
        return [each.kwargs["chunk"] for each in self.sent if each.name == "to_task.annotate"]


class KilledError(BaseException):
    """The process is gone."""


@dataclass
class World:
    """One run in one process."""

    redis: FakeRedis
    loop: LoopThread
    backend: FakeBackend = field(default_factory=FakeBackend)
    host: FakeHost = field(default_factory=FakeHost)
    sender: Sender = field(default_factory=Sender)
    chunk: int = 10
    params: Row = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.runs = Runs(self.redis, self.sender, Timing(60.0))
        settings = SimpleNamespace(
            worker_annotate_chunk=self.chunk,
            worker_visibility_timeout_seconds=60.0,
            worker_pre_processor_timeout_seconds=180.0,
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
                action_of=lambda run: (None, None),
            ),
        )
        backends = cast(Any, SimpleNamespace(of=lambda tenant: self.backend))
        self.crew = Crew(self.loop, backends, Pace(0.0))
        self.accept(**self.params)

    def accept(self, **params: Any) -> None:
        given = {"name": "n", "project": 1, "agent": 3, "target_specification_name": "label", **params}
        message = ToTaskMessage.model_validate({"job": JOB, "plugin": "digits@1.0.0", "params": given})
        self.runs.store.accept(message, "to_task")
        if given.get("method") == "inference":
            batch = given.get("batch")
            options = {} if batch is None else {"serve_options": {"batch": {"max_batch_size": batch}}}
            config = {"code": "pre", "actions": {"inference": options}}
            finding = {"code": "pre", "version": "2.0.0", "config": config, "agent": 3}
            self.runs.store.note(JOB, "pre_processor", finding)

    @property
    def run(self) -> Run:
        return self.runs.store.load(JOB)

    @property
    def ledger(self) -> RedisLedger:
        return RedisLedger(self.redis, JOB)

    def fetch(self) -> Outcome:
        return fetch_tasks(self.run, self.services)

    def spread(self) -> Outcome:
        return spread(self.run, self.services)

    def annotate(self, chunk: int) -> Outcome:
        return annotate(self.run, chunk, self.services, self.crew)

    def annotate_fully(self, chunk: int, deliveries: int = 50) -> tuple[list[float], Outcome]:
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
        assert isinstance(outcome, Continue), outcome
        assert isinstance(self.spread(), Suspend)

    def work(self) -> Finish:
        """The whole run, each message delivered once, to its end."""
        self.collect()
        delivered = 0
        while True:
            chunks = self.sender.chunks()
            assert delivered < len(chunks), "the run is stuck"
            _, outcome = self.annotate_fully(chunks[delivered])
            delivered += 1
            if isinstance(outcome, Continue):
                end = finalize(self.run, self.services)
                assert isinstance(end, Finish)
                return end

    def end(self) -> None:
        """The user stops the run."""
        from worker.runs.reporter import stop_run

        stop_run(JOB, self.runs)

    def record(self) -> Row:
        """The public record."""
        return cast(Row, self.redis.hgetall(job_key(JOB)))
