"""A log of the effects that test workers have, from which the auditor knows what was in flight when.

A line is one event: time, process id, `begun` or `recorded`, and the effect. `recorded` means that the worker
has stored the effect: a task in the ledger, an end marked as reported. It must not begin it again after that.
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
    """One event of an effect."""

    time: float
    pid: int
    is_recorded: bool


@dataclass
class Faults:
    """The faults that a test injected."""

    kills: list[tuple[int, float]] = field(default_factory=list)
    """Killed workers: process id and time."""
    outages: list[tuple[float, float]] = field(default_factory=list)
    """Outages of Redis or the backend: first and last moment at which a response may have been lost."""

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Record an outage that lasts as long as the block."""
        began = time.time()
        try:
            yield
        finally:
            self.outages.append((began, time.time()))

    def may_have_lost_response(self, since: float, until: float) -> bool:
        """Whether an outage overlaps the period."""
        return any(began <= until and since <= ended for began, ended in self.outages)

    def explains_repetition(self, first: Entry, second: Entry) -> bool:
        """Whether a fault kept the worker of `second` from knowing that `first` had begun the effect."""
        killed = any(pid == first.pid and when <= second.time for pid, when in self.kills)
        return killed or self.may_have_lost_response(first.time, second.time)


class EffectLog:
    """One file to which all workers append; it outlives them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def append(self, event: str, *effects: str) -> None:
        """Append a line for each effect in one write."""
        lines = (f"{time.time():.6f} {os.getpid()} {event} {effect}\n" for effect in effects)
        os.write(self._file, "".join(lines).encode())

    def entries(self) -> dict[str, list[Entry]]:
        """The entries of each effect, in their order."""
        found: defaultdict[str, list[Entry]] = defaultdict(list)
        for line in self._path.read_text().splitlines():
            when, pid, event, effect = line.split(" ", 3)
            found[effect].append(Entry(float(when), int(pid), event == "recorded"))
        return found


def log_effects(effect_log: EffectLog) -> None:
    """Wrap this process's clients and stores so that they log their effects."""
    annotate, update, record, mark_reported = (
        AsyncBackendClient.annotate_task_data,
        BackendClient.update_job,
        RedisLedger.record,
        RunStore.mark_reported,
    )

    async def logged_annotate(self: Any, task: int, *args: Any, **kwargs: Any) -> Any:
        effect_log.append("begun", f"task {task}")
        return await annotate(self, task, *args, **kwargs)

    def logged_update(self: Any, job: str, **fields: Any) -> Any:
        if "result" in fields:
            effect_log.append("begun", f"end {job}")
        return update(self, job, **fields)

    def logged_record(self: Any, outcomes: Any) -> bool:
        is_recorded = record(self, outcomes)
        if is_recorded:
            effect_log.append("recorded", *(f"task {outcome.task_id}" for outcome in outcomes))
        return is_recorded

    def logged_mark_reported(self: Any, job: str) -> bool:
        is_due_at_webhook = mark_reported(self, job)
        effect_log.append("recorded", f"end {job}")
        return is_due_at_webhook

    for owner, name, logged in (
        (AsyncBackendClient, "annotate_task_data", logged_annotate),
        (BackendClient, "update_job", logged_update),
        (RedisLedger, "record", logged_record),
        (RunStore, "mark_reported", logged_mark_reported),
    ):
        setattr(owner, name, logged)
