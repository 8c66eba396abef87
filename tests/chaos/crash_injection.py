"""Makes a worker die as by `kill -9` at a named point, for a named job or plugin.

Loaded into test workers alone; the product has no hook. A crash is a file `point@subject` in the folder
CHAOS_DEATHS; the process that renames it first dies, so each crash happens once.
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

from worker.platform import AsyncBackendClient, BackendClient
from worker.pre_processor.waitlist import Waitlist
from worker.runs.generations import Generations
from worker.runs.publisher import CeleryPublisher
from worker.runs.runs import Runs
from worker.runs.store import RunStore
from worker.to_task.discover import TaskIndex
from worker.to_task.ledger import RedisLedger
from worker.workflow.task import StepTask

Subjects = Callable[..., tuple[Any, ...]]
Name = Callable[..., str]


class Deaths:
    """The deaths that are still to be died."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def at(self, point: str, *subjects: Any) -> None:
        """Die here, if that was asked for."""
        bound = get_contextvars().get("job")
        for subject in {str(each) for each in (*subjects, bound) if each}:
            marker = self._folder / f"{point}@{subject}"
            if not marker.exists():
                continue
            with contextlib.suppress(FileNotFoundError):
                marker.rename(marker.with_suffix(".dying"))
                news = {"point": point, "subject": subject, "time": time.time(), "pid": os.getpid()}
                done = self._folder / f"{point}@{subject}.dead"
                done.with_suffix(".writing").write_text(json.dumps(news))
                done.with_suffix(".writing").rename(done)
                os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(60)  # until the signal has arrived


def wrap(deaths: Deaths, owner: Any, method: str, name: Name, subjects: Subjects) -> None:
    """`owner.method` dies before or after its work. The names may depend on its arguments."""
    original = getattr(owner, method)

    def crash_injection(self: Any, *args: Any, **kwargs: Any) -> Any:
        point, whose = name(*args, **kwargs), subjects(self, *args, **kwargs)
        deaths.at(f"{point}:before", *whose)
        answer = original(self, *args, **kwargs)
        deaths.at(f"{point}:after", *whose)
        return answer

    setattr(owner, method, crash_injection)


def wrap_async(deaths: Deaths, owner: Any, method: str, point: str) -> None:
    """The same for a coroutine."""
    original = getattr(owner, method)

    async def crash_injection(self: Any, *args: Any, **kwargs: Any) -> Any:
        deaths.at(f"{point}:before")
        answer = await original(self, *args, **kwargs)
        deaths.at(f"{point}:after")
        return answer

    setattr(owner, method, crash_injection)


def inject_crashes(folder: Path) -> Deaths:
    """Every place at which a step touches something that outlives the process."""
    deaths = Deaths(folder)
    fixed: Callable[[str], Name] = lambda text: lambda *_, **__: text  # noqa: E731
    first: Subjects = lambda _self, subject, *_, **__: (subject,)  # noqa: E731
    of_waitlist: Subjects = lambda waitlist, *_, **__: (waitlist.name.code,)  # noqa: E731
    of_ledger: Subjects = lambda ledger, *_, **__: (ledger._job,)  # noqa: E731

    wrap(deaths, RunStore, "accept", fixed("accept"), lambda _s, message, *_: (message.job,))
    wrap(deaths, RunStore, "claim_step", lambda _job, step, *_: f"begin {step.name}", first)
    wrap(deaths, RunStore, "finish", fixed("finish"), first)
    wrap(deaths, RunStore, "mark_reported", fixed("mark_reported"), first)
    wrap(
        deaths,
        RunStore,
        "update_state",
        lambda run, state: f"update_state {'+'.join(run.state.changes(state))}",
        lambda _s, run, _state: (run.job,),
    )
    wrap(deaths, Generations, "advance", lambda _job, step, *_: f"announce {step}", first)
    wrap(deaths, Runs, "mark_running", fixed("start"), lambda _s, run: (run.job,))
    wrap(
        deaths,
        CeleryPublisher,
        "publish",
        lambda step, *_, **__: f"send {step.name}",
        lambda _s, _step, _queue, kwargs, *_: (kwargs.get("job"), _code_of(kwargs.get("room"))),
    )
    for method in ("update_job", "create_serve_application", "run_plugin", "get_project", "list_tasks"):
        wrap(deaths, BackendClient, method, _backend_point(method), _backend_subjects(method))
    wrap_async(deaths, AsyncBackendClient, "annotate_task_data", "annotate_task_data")
    wrap_async(deaths, AsyncBackendClient, "run_plugin", "infer")
    for method in ("join", "mark_sent", "mark_known", "claim_poll", "end_poll"):
        wrap(deaths, Waitlist, method, fixed(f"room {method}"), of_waitlist)
    wrap(deaths, Waitlist, "remove", fixed("room leave"), lambda waitlist, *jobs: (waitlist.name.code, *jobs))
    for method in ("record", "complete_chunk", "next_chunks", "mark_published"):
        wrap(deaths, RedisLedger, method, fixed(f"ledger {method}"), of_ledger)
    wrap(deaths, TaskIndex, "commit", fixed("catalogue commit"), of_ledger)
    _wrap_retry(deaths)
    return deaths


def _backend_point(method: str) -> Name:
    def name(*_: Any, **fields: Any) -> str:
        # The final report and those on the way are different points.
        return f"{method} end" if "result" in fields else method

    return name


def _backend_subjects(method: str) -> Subjects:
    def subjects(_self: Any, *args: Any, **fields: Any) -> tuple[Any, ...]:
        if method in ("update_job", "run_plugin"):
            return (args[0],)  # a job, or a plugin's code
        return (fields.get("job"),)

    return subjects


def _wrap_retry(deaths: Deaths) -> None:
    original = StepTask.retry

    def crash_injection(self: Any, *args: Any, **kwargs: Any) -> Any:
        carried = kwargs.get("kwargs") or {}
        whose = (carried.get("job"), _code_of(carried.get("room")))
        deaths.at(f"retry {self.name}:before", *whose)
        try:
            return original(self, *args, **kwargs)
        except Retry:
            deaths.at(f"retry {self.name}:after", *whose)
            raise

    StepTask.retry = crash_injection


def _code_of(waitlist: Any) -> str | None:
    return waitlist.split(":")[2].split("@")[0] if isinstance(waitlist, str) else None
