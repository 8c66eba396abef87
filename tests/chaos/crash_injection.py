"""Kills a worker process (SIGKILL) at a named point, for a named job or plugin.

Loaded into test workers only; the product has no hook for it. A crash is requested by a file `point@subject`
in the folder CHAOS_CRASHES. The process that succeeds in renaming the file dies, so each crash happens once.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery.exceptions import Retry
from structlog.contextvars import get_contextvars

from worker.platform import AgentClient, AsyncBackendClient, BackendClient
from worker.pre_processor.waitlist import Waitlist
from worker.runs.model import Lease
from worker.runs.publisher import CeleryPublisher
from worker.runs.reports.outbox import Outbox
from worker.runs.reports.webhook import WebhookClient, Webhooks
from worker.runs.runs import Runs
from worker.runs.shares.slots import Slots
from worker.runs.store import RunStore
from worker.to_task.discover import TaskIndex
from worker.to_task.ledger import RedisLedger
from worker.workflow.capacity import CapacityWaitlist
from worker.workflow.task import StepTask

Subjects = Callable[..., tuple[Any, ...]]
"""From the arguments of a call to the jobs and plugin codes that it is about."""
PointName = Callable[..., str]
"""From the arguments of a call to the name of its point."""


class RequestedCrashes:
    """The crashes that a test has requested and that have not happened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def crash_if_requested(self, point: str, *subjects: Any) -> None:
        """Kill this process when a crash at `point` is requested for one of `subjects` or the current job."""
        current_job = get_contextvars().get("job")
        for subject in {str(each) for each in (*subjects, current_job) if each}:
            request = self._folder / f"{point}@{subject}"
            if not request.exists():
                continue
            with contextlib.suppress(FileNotFoundError):
                request.rename(request.with_suffix(".claimed"))
                crash = {"point": point, "subject": subject, "time": time.time(), "pid": os.getpid()}
                report = self._folder / f"{point}@{subject}.crashed"
                report.with_suffix(".writing").write_text(json.dumps(crash))
                report.with_suffix(".writing").rename(report)
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)  # The signal is delivered meanwhile.


def add_points(
    crashes: RequestedCrashes, owner: Any, method: str, point_name: PointName, subjects: Subjects
) -> None:
    """Add a point before and one after `owner.method`."""
    original = getattr(owner, method)

    def with_points(self: Any, *args: Any, **kwargs: Any) -> Any:
        point, about = point_name(*args, **kwargs), subjects(self, *args, **kwargs)
        crashes.crash_if_requested(f"{point}:before", *about)
        result = original(self, *args, **kwargs)
        crashes.crash_if_requested(f"{point}:after", *about)
        return result

    setattr(owner, method, with_points)


def add_async_points(crashes: RequestedCrashes, owner: Any, method: str, point: str) -> None:
    """Add a point before and one after the coroutine `owner.method`."""
    original = getattr(owner, method)

    async def with_points(self: Any, *args: Any, **kwargs: Any) -> Any:
        crashes.crash_if_requested(f"{point}:before")
        result = await original(self, *args, **kwargs)
        crashes.crash_if_requested(f"{point}:after")
        return result

    setattr(owner, method, with_points)


def inject_crashes(folder: Path) -> RequestedCrashes:
    """Add points around everything by which a step changes state that outlives the process."""
    crashes = RequestedCrashes(folder)
    constant: Callable[[str], PointName] = lambda text: lambda *_, **__: text  # noqa: E731
    first_argument: Subjects = lambda _self, subject, *_, **__: (subject,)  # noqa: E731
    code_of_waitlist: Subjects = lambda waitlist, *_, **__: (waitlist.name.code,)  # noqa: E731
    job_of_ledger: Subjects = lambda ledger, *_, **__: (ledger._job,)  # noqa: E731

    add_points(crashes, RunStore, "accept", constant("accept"), lambda _self, message, *_: (message.job,))
    add_points(
        crashes, RunStore, "claim_step", lambda _job, step, *_: f"claim_step {step.name}", first_argument
    )
    add_points(
        crashes, RunStore, "end_step", lambda _job, lease, *_: f"end_step {_step_of(lease)}", first_argument
    )
    add_points(crashes, RunStore, "finish_all", constant("finish"), lambda _self, jobs, *_: tuple(jobs))
    add_points(crashes, RunStore, "mark_reported", constant("mark_reported"), first_argument)
    add_points(
        crashes,
        RunStore,
        "update_state",
        lambda run, state: f"update_state {'+'.join(run.state.changes(state))}",
        lambda _self, run, _state: (run.job,),
    )
    for method, point in (
        ("claim", "claim_report"), ("acknowledge", "acknowledge_report"),
    ):  # fmt: skip
        add_points(crashes, Outbox, method, constant(point), first_argument)
    add_points(
        crashes,
        RunStore,
        "reschedule_step",
        lambda _run, name, *_: f"reschedule_step {name}",
        lambda _self, run, *_: (run.job,),
    )
    add_points(crashes, Runs, "mark_running", constant("mark_running"), lambda _self, run: (run.job,))
    add_points(
        crashes,
        CeleryPublisher,
        "publish",
        lambda step, *_, **__: f"publish {step.name}",
        lambda _self, _step, _queue, kwargs, *_, **__: (kwargs.get("job"), _code_of(kwargs.get("room"))),
    )
    for method in ("update_job", "create_serve_application", "run_plugin", "get_project", "list_tasks"):
        add_points(crashes, BackendClient, method, _backend_point(method), _backend_subjects(method))
    add_async_points(crashes, AsyncBackendClient, "annotate_task_data", "annotate_task_data")
    add_async_points(crashes, AsyncBackendClient, "run_plugin", "infer")
    for method in ("join", "mark_sent", "mark_known", "claim_poll", "end_poll"):
        add_points(crashes, Waitlist, method, constant(f"waitlist {method}"), code_of_waitlist)
    add_points(
        crashes,
        Waitlist,
        "remove",
        constant("waitlist remove"),
        lambda waitlist, *jobs: (waitlist.name.code, *jobs),
    )
    add_points(
        crashes,
        Waitlist,
        "resume",
        constant("waitlist resume"),
        lambda waitlist, jobs, _messages: (waitlist.name.code, *jobs),
    )
    add_points(
        crashes,
        AgentClient,
        "check_feasibility",
        constant("check_feasibility"),
        lambda _self, **asked: (asked["metadata"]["plugin_code"].partition("@")[0],),
    )
    for method in ("look", "leave"):
        add_points(crashes, CapacityWaitlist, method, constant(f"capacity {method}"), first_argument)
    for method in ("record", "complete_chunk", "next_chunks", "mark_published"):
        add_points(crashes, RedisLedger, method, constant(f"ledger {method}"), job_of_ledger)
    add_points(crashes, TaskIndex, "commit", constant("task_index commit"), job_of_ledger)
    slot_of: Subjects = lambda _self, _tenant, holder, *_: (holder.partition("{")[2].partition("}")[0],)  # noqa: E731
    for method in ("take", "free"):
        add_points(crashes, Slots, method, _slot_point(method), slot_of)
    for method in ("claim", "end_attempt"):
        add_points(crashes, Webhooks, method, constant(f"webhook {method}"), first_argument)
    add_points(
        crashes,
        WebhookClient,
        "post",
        constant("webhook post"),
        lambda _self, _event_id, body: (json.loads(body)["data"]["job"],),
    )
    _add_points_to_retry(crashes)
    return crashes


def _slot_point(method: str) -> PointName:
    return lambda _tenant, holder, *_: f"{method} slot of {'chunk' if ':lock:' in holder else 'run'}"


def _step_of(lease: Lease) -> str:
    return lease.key.partition(":lock:")[2]


def _backend_point(method: str) -> PointName:
    def point_name(*_: Any, **fields: Any) -> str:
        # The final report is a point of its own.
        return f"{method} end" if "result" in fields else method

    return point_name


def _backend_subjects(method: str) -> Subjects:
    def subjects(_self: Any, *args: Any, **fields: Any) -> tuple[Any, ...]:
        if method in ("update_job", "run_plugin"):
            return (args[0],)  # a job, or a plugin's code
        return (fields.get("job"),)

    return subjects


def _add_points_to_retry(crashes: RequestedCrashes) -> None:
    original = StepTask.retry

    def with_points(self: Any, *args: Any, **kwargs: Any) -> Any:
        message = kwargs.get("kwargs") or {}
        about = (message.get("job"), _code_of(message.get("room")))
        crashes.crash_if_requested(f"retry {self.name}:before", *about)
        try:
            return original(self, *args, **kwargs)
        except Retry:
            crashes.crash_if_requested(f"retry {self.name}:after", *about)
            raise

    StepTask.retry = with_points


def _code_of(waitlist: Any) -> str | None:
    """The plugin code in the name of a waiting list."""
    return waitlist.split(":")[2].split("@")[0] if isinstance(waitlist, str) else None
