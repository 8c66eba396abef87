"""What test workers note of the effects that they have, so that the auditor knows what was in flight when.

A line an event: when, whose process, `began` or `done`, and what. `done` means that the effect is on record:
a task in the ledger, an end marked as reported. A process that begins it again after that has done it twice.
"""

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.platform import AsyncBackendClient, BackendClient
from worker.runs.store import RunStore
from worker.to_task.ledger import RedisLedger


@dataclass(frozen=True)
class Entry:
    """One line."""

    time: float
    pid: int
    is_done: bool


@dataclass
class Disturbances:
    """What was done to a site."""

    deaths: list[tuple[int, float]] = field(default_factory=list)
    """Workers that were killed, by their process: when."""
    outages: list[tuple[float, float]] = field(default_factory=list)
    """Of Redis or the backend, whose answers were lost."""

    @contextmanager
    def outage(self) -> Iterator[None]:
        """The block is one."""
        began = time.time()
        try:
            yield
        finally:
            self.outages.append((began, time.time()))

    def cut(self, since: float, until: float) -> bool:
        """Whether an answer may have been lost in between."""
        return any(began <= until and since <= ended for began, ended in self.outages)

    def excuse(self, first: Entry, again: Entry) -> bool:
        """Whether what `first` began could not be known when it was begun `again`."""
        died = any(pid == first.pid and when <= again.time for pid, when in self.deaths)
        return died or self.cut(first.time, again.time)


class EffectLog:
    """One file for all workers, which survives them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, event: str, *subjects: str) -> None:
        """Before the effect, or after it is on record."""
        lines = (f"{time.time():.6f} {os.getpid()} {event} {subject}\n" for subject in subjects)
        os.write(self._file, "".join(lines).encode())

    def entries(self) -> dict[str, list[Entry]]:
        """By what they are about, in their order."""
        found: defaultdict[str, list[Entry]] = defaultdict(list)
        for line in self._path.read_text().splitlines():
            when, pid, event, subject = line.split(" ", 3)
            found[subject].append(Entry(float(when), int(pid), event == "done"))
        return found


def keep(effect_log: EffectLog) -> None:
    """This process's clients and records note what they do."""
    annotate, update, record, mark_reported = (
        AsyncBackendClient.annotate_task_data,
        BackendClient.update_job,
        RedisLedger.record,
        RunStore.mark_reported,
    )

    async def noted_annotate(self: Any, task: int, *args: Any, **kwargs: Any) -> Any:
        effect_log.note("began", f"task {task}")
        return await annotate(self, task, *args, **kwargs)

    def noted_update(self: Any, job: str, **fields: Any) -> Any:
        if "result" in fields:
            effect_log.note("began", f"end {job}")
        return update(self, job, **fields)

    def noted_record(self: Any, marks: Any) -> bool:
        taken = record(self, marks)
        if taken:
            effect_log.note("done", *(f"task {mark.task_id}" for mark in marks))
        return taken

    def noted_mark_reported(self: Any, job: str) -> None:
        mark_reported(self, job)
        effect_log.note("done", f"end {job}")

    for owner, name, noted in (
        (AsyncBackendClient, "annotate_task_data", noted_annotate),
        (BackendClient, "update_job", noted_update),
        (RedisLedger, "record", noted_record),
        (RunStore, "mark_reported", noted_mark_reported),
    ):
        setattr(owner, name, noted)
