"""Many `to_task` runs wait for one pre-processor that starts slowly: polls, dispatches, release times.

Before that, without workers, what the waiting list itself costs with 100 to 30,000 runs on it: commands and
time of a poll, of resuming all runs and of failing all, against publishing as many messages with bare Celery,
and the memory of a run that waits.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import structlog
import yaml
from celery import Celery
from common.results import Row, argument_parser, at_most, report
from redis import Redis

from shared import JobStatus, Publisher, ToTaskMessage
from worker.sandbox import Sandbox, wait_for
from worker.sandbox.backend.state import State
from worker.sandbox.sandbox import AGENT_ID
from worker.sandbox.seed import SeededProject, seed_numbered_project
from worker.sandbox.servers import RedisServer
from worker.testing import FakeBackend

MAX_WAIT_SECONDS = 180
TASKS = 4
"""Of each run."""
BARE_IN_FLIGHT = 32
"""Requests of the bare loop: what the application takes at once, two batches of 16."""
EXAMPLE = Path(__file__).parents[1] / "examples" / "plugins" / "digits@1.0.0"
"""The release whose config the waiting runs keep."""


@dataclass(frozen=True)
class Size:
    """How many runs wait, and how long the pre-processor takes to start."""

    runs: int
    start_seconds: int
    waiting: tuple[int, ...]
    """How many runs are on the lists whose cost is measured."""


FULL = Size(runs=50, start_seconds=30, waiting=(100, 1_000, 10_000, 30_000))
QUICK = Size(runs=10, start_seconds=10, waiting=(100, 1_000))

CONFIG = """
code: slow
version: 1.0.0
actions:
  deployment: {entrypoint: plugin.Deployment}
  inference:
    entrypoint: plugin.SlowServe
    required_resources: {required_cpu_count: 1, required_gpu_count: 0}
    serve_options: {batch: {max_batch_size: 16}}
  to_task: {entrypoint: plugin.ToTask}
"""

CODE = """
import time
from worker.actions import BaseDeploymentAction, BaseServeDeployment, ToTaskAction

class SlowServe(BaseServeDeployment):
    def __init__(self, backend_url):
        super().__init__(backend_url)
        time.sleep(START_SECONDS)
    async def _get_model(self, model_info):
        return None
    async def infer(self, data):
        return data

class Deployment(BaseDeploymentAction):
    entrypoint = SlowServe

class ToTask(ToTaskAction):
    def convert_data_from_inference(self, inference_data, task_data=None):
        return {"seen": True}
"""


@dataclass(frozen=True)
class Cost:
    """What something took: commands of Redis, those in scripts included, and seconds."""

    commands: int
    seconds: float


def cost_of(redis: Redis, work: Callable[[], object]) -> Cost:
    """Do the work and measure it."""
    redis.config_resetstat()
    begun = time.perf_counter()
    work()
    seconds = time.perf_counter() - begun
    counted = redis.info("commandstats")
    ours = ("cmdstat_config|resetstat", "cmdstat_info")
    return Cost(sum(stat["calls"] for name, stat in counted.items() if name not in ours), seconds)


class WaitingRuns:
    """Runs that wait for one pre-processor, in a Redis of their own, and the polls of their waiting list."""

    def __init__(self, server: RedisServer, plugins: Path) -> None:
        os.environ |= {"REDIS_URL": server.url, "PLUGINS_DIR": str(plugins), "SYNAPSE_HOST": "http://backend"}
        os.environ |= {
            "SYNAPSE_ACCESS_TOKEN": "token-of-the-worker",
            "WORKER_VISIBILITY_TIMEOUT_SECONDS": "60",
        }
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
        # Only now, because the app is made of the settings that the environment names.
        from worker.app import app
        from worker.pre_processor.waitlist import Waitlist, WaitlistName
        from worker.services import Services
        from worker.settings import settings

        class BenchServices(Services):
            client = FakeBackend()

            def backend(self, tenant: str | None = None) -> Any:  # noqa: ARG002
                return self.client

        self.services = BenchServices(settings(), app)
        config = yaml.safe_load((EXAMPLE / "config.yaml").read_text(encoding="utf-8"))
        BenchServices.client.release = {"id": 7, "version": "1.0.0", "config": config}
        self.redis = self.services.redis
        self.waitlist = Waitlist(self.redis, WaitlistName("", AGENT_ID, "digits", "1.0.0"))

    def accept(self, job: str) -> None:
        """Deliver a message and all that follows from it, in this process, until the run waits."""
        from worker.app import app
        from worker.pre_processor.dispatch import detect, dispatch
        from worker.pre_processor.waitlist import DETECT, DISPATCH
        from worker.runs.keys import patched_key
        from worker.runs.model import Continue, Outcome
        from worker.runs.reports import reporter
        from worker.to_task.steps import FETCH_TASKS, INITIALIZE, PREPARE
        from worker.workflow import intake
        from worker.workflow.task import StepTask

        services = self.services
        params = {"name": "first pass", "project": 1, "agent": AGENT_ID, "method": "inference"}
        fields = {"job": job, "plugin": "digits@1.0.0", "params": params | {"pre_processor": 7, "model": 3}}

        app.loader.import_default_modules()
        task = app.tasks[FETCH_TASKS.name]
        assert isinstance(task, StepTask)
        message = ToTaskMessage.model_validate(fields)
        intake.accept_message(message, INITIALIZE, "to_task", services.runs, 0, lambda _: None)

        def begin(run: Any) -> Outcome:
            intake.begin_run(run, services)
            return Continue(PREPARE)

        def prepare(run: Any) -> Outcome:
            services.runs.set_progress(run, "prepare", 10)
            return Continue(DETECT)

        steps: list[tuple[Any, Callable[[Any], Outcome]]] = [
            (INITIALIZE, begin),
            (PREPARE, prepare),
            (DETECT, lambda run: detect(run, services)),
            (DISPATCH, lambda run: dispatch(run, services)),
        ]
        for step, function in steps:
            task.push_request(kwargs={"job": job}, called_directly=False)
            task.run_step(step, job, function)
            task.pop_request()
            reporter.report(job, services.runs, services.backend)
            services.redis.delete(patched_key(job))
        self.redis.delete("to_task", "control")

    def keys_of(self, job: str) -> list[str]:
        """The keys of a run, without those that expire in a moment."""
        keys = self.redis.scan_iter(f"synapse:jobs:{{{job}}}*", count=10_000)
        return sorted(key for key in keys if self.redis.pttl(key) == -1)

    def copy(self, job: str, count: int) -> None:
        """Let `count` runs in all wait that are as this one."""
        binary = Redis.from_url(self.services.settings.redis_url)
        dumps = [(key, binary.dump(key)) for key in self.keys_of(job)]
        copies = [f"{job}-{number}" for number in range(count - 1)]
        deadline, due = (
            self.redis.zscore(self.waitlist._waiters, job),
            self.redis.zscore("synapse:live", f"run:{job}"),
        )
        with binary.pipeline(transaction=False) as pipe:
            for copy in copies:
                for key, dump in dumps:
                    pipe.restore(key.replace(f"{{{job}}}", f"{{{copy}}}"), 0, dump, replace=True)
                pipe.zadd(self.waitlist._waiters, {copy: deadline})
                pipe.zadd("synapse:live", {f"run:{copy}": due})
                if len(pipe.command_stack) > 10_000:
                    pipe.execute()
            pipe.execute()
        binary.close()

    def poll(self) -> Any:
        """Deliver the newest poll of the list."""
        from worker.pre_processor.poll import await_ready

        return await_ready(self.waitlist, self.waitlist.wake(), 0, self.services)

    def poll_until_empty(self) -> int:
        """Poll until no run waits; returns how often."""
        polls = 0
        while self.redis.zcard(self.waitlist._waiters):
            self.poll()
            polls += 1
        return polls


def measure_costs(sizes: tuple[int, ...]) -> Iterator[Row]:
    """The cost of lists of these sizes, as ratios to the smallest and to bare Celery."""
    with TemporaryDirectory() as folder:
        server = RedisServer(Path(folder) / "redis")
        server.start()
        try:
            runs = WaitingRuns(server, Path(folder))
            yield from measure_memory(runs)
            first: Cost | None = None
            for size in sizes:
                found = measure_list(runs, size)
                first = first or found.poll
                yield from cost_rows(size, found, first)
        finally:
            server.stop()


def measure_memory(runs: WaitingRuns) -> Iterator[Row]:
    """What one run costs until it waits, and while it does."""
    runs.accept("1")  # dispatches
    accepted = cost_of(runs.redis, lambda: runs.accept("2"))
    sizes = {key: int(runs.redis.memory_usage(key, samples=0) or 0) for key in runs.keys_of("2")}
    note = ", ".join(f"{key} {size} ({runs.redis.object('encoding', key)})" for key, size in sizes.items())
    yield Row("a run that waits: memory of Redis", sum(sizes.values()), "bytes", note=note)
    yield Row("a run until it waits: commands of Redis", accepted.commands, "")


@dataclass(frozen=True)
class ListCosts:
    """What one list costs, and publishing as many messages with bare Celery."""

    poll: Cost
    resume: Cost
    resumed: int
    fail: Cost
    overdue_a_poll: int
    published: Cost


def measure_list(runs: WaitingRuns, size: int) -> ListCosts:
    """Poll a list, resume all of its runs, and fail all."""
    backend, binary = runs.services.backend(), Redis.from_url(runs.services.settings.redis_url)

    def fill() -> None:
        # What was ended before is reported first, else the reports are about the new runs.
        wait_for(lambda: not runs.redis.zcard("synapse:outbox"), MAX_WAIT_SECONDS, "reports")
        runs.redis.flushdb()
        backend.serve_applications.clear()
        backend.jobs.clear()
        runs.accept("1")
        runs.copy("1", size)
        runs.poll()

    fill()
    poll = cost_of(runs.redis, runs.poll)
    backend.add_application()
    resume = cost_of(runs.redis, runs.poll_until_empty)
    resumed = runs.redis.llen("to_task")
    fill()
    seconds, _ = runs.redis.time()
    for job, _ in runs.redis.zscan_iter(runs.waitlist._waiters, count=10_000):
        binary.zadd(runs.waitlist._waiters, {job: seconds - 1})
    runs.poll()
    left = runs.redis.zcard(runs.waitlist._waiters)
    fill()
    backend.add_application("FAILED", job=101)
    backend.serve_applications[0]["status"] = "DEPLOY_FAILED"
    fail = cost_of(runs.redis, runs.poll_until_empty)
    runs.redis.flushdb()
    bare = Celery("bare", broker=runs.services.settings.redis_url, set_as_current=False)
    publish = partial(
        bare.send_task, "to_task.fetch_tasks", kwargs={"job": "1"}, queue="bare", ignore_result=True
    )
    published = cost_of(runs.redis, lambda: [publish() for _ in range(size)])
    binary.close()
    return ListCosts(poll, resume, resumed, fail, size - left, published)


def cost_rows(size: int, found: ListCosts, first: Cost) -> Iterator[Row]:
    """A list's costs, against those of the smallest one and of bare Celery."""
    what, smallest, celery = f"{size:,} runs wait", "the smallest list", "publishing with bare Celery"
    yield Row(f"{what}: commands of a poll", found.poll.commands, "", smallest, first.commands)
    yield Row(f"{what}: a poll", found.poll.seconds * 1e3, "ms", smallest, first.seconds * 1e3)
    for name, cost, note in (
        ("all resumed", found.resume, f"{found.resumed} messages"),
        ("all failed", found.fail, f"of as many overdue one poll sees to {found.overdue_a_poll}"),
    ):
        note = f"{cost.commands / size:.1f} commands a run; {note}"
        yield Row(f"{what}: {name}", cost.seconds, "s", celery, found.published.seconds, note=note)


def measure(sandbox: Sandbox, runs: int) -> Iterator[Row]:
    """Publish all runs at once; the figures come from the requests that the backend recorded."""
    state = sandbox.state
    release = state.value("SELECT id FROM plugin_releases WHERE code = 'slow'")
    projects = [seed_numbered_project(state, TASKS) for _ in range(runs)]
    jobs = []
    begun = time.time()
    with Publisher(sandbox.redis_url) as publisher:
        for project in projects:
            job = state.add_job(plugin="slow@1.0.0", agent=AGENT_ID, action="to_task")
            params = {"name": "bench", "project": project.id, "agent": AGENT_ID}
            params |= {"method": "inference", "pre_processor": release, "model": 1}
            fields = {"job": job, "plugin": "slow@1.0.0", "params": params}
            publisher.publish(ToTaskMessage.model_validate(fields))
            jobs.append(job)
    for job in jobs:
        wait_for(
            partial(has_ended, state, job),
            MAX_WAIT_SECONDS,
            f"end of job {job}",
        )
    failed = [job for job in jobs if (state.job(job) or {})["status"] != JobStatus.SUCCEEDED]
    deployment = state.row("SELECT id, updated FROM jobs WHERE action = 'deployment'") or {}
    deployment_ended = state.value(
        "SELECT min(time) FROM requests WHERE method = 'PATCH' AND path = ? AND body LIKE '%SUCCEEDED%'",
        f"/jobs/{deployment['id']}/",
    )
    registered = state.value(
        "SELECT min(time) FROM requests WHERE method = 'POST' AND path = '/serve_applications/'"
    )
    polls = state.value(
        "SELECT count(*) FROM requests"
        " WHERE method = 'GET' AND path LIKE '/serve_applications/%' AND time < ?",
        registered,
    )
    first_annotations = [first_annotation(state, project) - registered for project in projects]
    dispatches = state.value("SELECT count(*) FROM jobs WHERE action = 'deployment'")
    first_annotations.sort()
    after = deployment_ended - registered
    what = f"{runs} runs wait for one pre-processor"
    waited = f"after {registered - begun:.1f} s; its job ended {after:+.1f} s later"
    spread = f"first {first_annotations[0]:.2f}, median {first_annotations[runs // 2]:.2f}"
    yield Row(f"{what}: not succeeded", len(failed), "runs")
    yield Row(f"{what}: dispatches", dispatches, "")
    yield Row(f"{what}: polls of the backend, the first of each run included", polls, "", note=waited)
    last = f"{what}: from its record to the last run's first annotation"
    bare = measure_bare(sandbox, runs)
    goal, against = at_most(0.5, of_figure=True), "a bare loop of the same requests"
    yield Row(last, first_annotations[-1], "s", against, bare, goal=goal, note=spread)


def has_ended(state: State, job: int | str) -> bool:
    """Whether the backend has the job's end."""
    return JobStatus((state.job(job) or {})["status"]).is_final


def measure_bare(sandbox: Sandbox, runs: int) -> float:
    """Seconds until a bare loop has annotated one task of each of as many projects; others wait behind."""
    state = sandbox.state
    projects = [seed_numbered_project(state, TASKS) for _ in range(runs)]
    tasks = [project.tasks[number] for number in range(TASKS) for project in projects]
    begun = time.time()
    asyncio.run(annotate_bare(sandbox, tasks))
    return max(first_annotation(state, project) for project in projects) - begun


def first_annotation(state: State, project: SeededProject) -> float:
    """When the first task of the project was annotated."""
    query = "SELECT min(a.time) FROM annotations a JOIN tasks t ON t.id = a.task WHERE t.project = ?"
    return float(state.value(query, project.id))


async def annotate_bare(sandbox: Sandbox, tasks: Sequence[int]) -> None:
    """Fetch each task, infer, and write, as many at once as the application takes."""
    headers = {"Synapse-Access-Token": f"Token {sandbox.access_token}"}
    call = {"model": 1, "method": "post", "json": {"image_path": "http://127.0.0.1/image"}}
    inference = {"agent": AGENT_ID, "action": "inference", "params": call, "version": "1.0.0"}
    annotation = {"action": "submit", "data": {"seen": True}}
    slots = asyncio.Semaphore(BARE_IN_FLIGHT)
    async with aiohttp.ClientSession(sandbox.backend_url, headers=headers, raise_for_status=True) as client:

        async def send(method: str, path: str, body: object = None) -> None:
            async with client.request(method, path, json=body) as response:
                await response.read()

        async def annotate(task: int) -> None:
            async with slots:
                await send("GET", f"/tasks/{task}/")
                await send("POST", "/plugins/slow/run/", inference)
                await send("PUT", f"/tasks/{task}/annotate_task_data/", annotation)

        await asyncio.gather(*map(annotate, tasks))


def measure_all(size: Size, *, only_costs: bool) -> Iterator[Row]:
    """Costs of lists, then many runs at once on a whole platform."""
    yield from measure_costs(size.waiting)
    if only_costs:
        return
    with TemporaryDirectory() as folder:
        release = Path(folder) / "slow@1.0.0"
        release.mkdir()
        (release / "config.yaml").write_text(CONFIG)
        (release / "plugin.py").write_text(f"START_SECONDS = {size.start_seconds}\n{CODE}")
        with Sandbox(plugins_dir=Path(folder)) as sandbox:
            sandbox.start_worker()
            yield from measure(sandbox, size.runs)


def main() -> None:
    """Measure and report."""
    parser = argument_parser(__doc__, quick="fewer runs and a faster start: about a minute")
    parser.add_argument("--costs", action="store_true", help="only what the waiting list itself costs")
    arguments = parser.parse_args()
    size = QUICK if arguments.quick else FULL
    report(measure_all(size, only_costs=arguments.costs), arguments, __file__)


if __name__ == "__main__":
    main()
