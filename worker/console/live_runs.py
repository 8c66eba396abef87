"""The runs that the page shows, in memory: what is known of each, and what has changed in which version."""

from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from shared.statuses import is_final_status

MAX_ENDED_RUNS: Final = 500
"""So many runs that have ended stay on the page, the latest ones."""

MAX_TEXT_CHARS: Final = 1_000
"""Of a text that others wrote, such as an error: the run's own page has the rest."""

SECONDS_BETWEEN_COUNTS: Final = 2.0
COUNTS: Final = 15
"""The time left comes from the pace of the last half minute."""

_TEXTS: Final = ("action", "plugin", "status", "step", "error", "waiting_for", "message", "progress_step")
_WHOLE_NUMBERS: Final = ("success", "failed", "total", "started", "updated", "waiting_since", "waiting_until")
_NUMBERS: Final = ("overall", "percent")
RISING: Final = ("overall", "success", "failed")
"""These never fall, so that a change that was published before a record was read does no harm after it."""


@dataclass
class LiveRun:
    """What is known of one run. Times are of Redis's clock, in seconds."""

    job: str
    values: dict[str, Any] = field(default_factory=dict)
    changed_in: dict[str, int] = field(default_factory=dict)
    """By field the version in which it changed last."""
    counts: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=COUNTS))
    """How many tasks were done, and when, as they were seen."""

    @property
    def has_ended(self) -> bool:
        """Whether its status is a final one."""
        return is_final_status(self.values.get("status"))

    @property
    def is_known(self) -> bool:
        """Whether its record was seen, and not only what has changed of it since."""
        return "action" in self.values

    def seconds_left(self) -> int | None:
        """By the pace of its tasks; None while there is none, as for a run that waits."""
        total = int(self.values.get("total", 0))
        if self.has_ended or self.values.get("waiting_for") or len(self.counts) < 2:
            return None
        (since, before), (until, now) = self.counts[0], self.counts[-1]
        if now <= before or until <= since:
            return None
        return round(max(total - now, 0) * (until - since) / (now - before))


class LiveRuns:
    """All live runs and those that have ended last, with a number for each version of the whole.

    It is of one event loop, and reads neither Redis nor a clock.
    """

    def __init__(self) -> None:
        self.version = 0
        self._runs: OrderedDict[str, LiveRun] = OrderedDict()
        """The one that changed last at the end."""
        self._removed: OrderedDict[str, int] = OrderedDict()
        self._last_forgotten_removal = 0
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._unknown: set[str] = set()

    def __len__(self) -> int:
        return len(self._runs)

    def get(self, job: str) -> LiveRun | None:
        """What is known of a run, or None."""
        return self._runs.get(job)

    def all(self) -> Iterable[LiveRun]:
        """All runs, the one that changed last at the end."""
        return self._runs.values()

    def live_jobs(self) -> set[str]:
        """The jobs of the runs that have not ended, as far as is known."""
        return {run.job for run in self._runs.values() if not run.has_ended}

    def unknown_jobs(self) -> list[str]:
        """The jobs of which only a change was heard: their records are to be read."""
        return sorted(self._unknown)

    def apply(self, job: str, change: Mapping[str, str], now: float, *, is_record: bool = False) -> None:
        """Accept what has changed of a run; `is_record`: this is all that its public record has.

        What cannot be read is left out: an older or newer release may write it.
        """
        run = self._runs.get(job)
        if run is None:
            run = self._runs[job] = LiveRun(job)
            self._removed.pop(job, None)
        values = read_change(change)
        if is_record:
            values.setdefault("waiting_for", "")
        if run.has_ended and not is_final_status(values.get("status")):
            # A change that was published before the end, and read after it.
            for name in ("status", "step", "waiting_for", "message"):
                values.pop(name, None)
        for name in RISING:
            if name in values and values[name] < run.values.get(name, 0):
                del values[name]
        was_known = run.is_known
        self._store(run, values)
        if run.is_known and not was_known:
            # Nobody was sent what was heard of it before.
            run.changed_in = dict.fromkeys(run.values, self.version)
        (self._unknown.discard if run.is_known else self._unknown.add)(job)
        self._count(run, values, now)

    def remove(self, job: str) -> None:
        """The run is gone: its record has expired, or it never was one."""
        self._unknown.discard(job)
        if self._runs.pop(job, None) is not None:
            self._ended.pop(job, None)
            self.version += 1
            self._removed[job] = self.version
            while len(self._removed) > MAX_ENDED_RUNS:
                _, self._last_forgotten_removal = self._removed.popitem(last=False)

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """What is known of all runs, by job."""
        return {run.job: dict(run.values) for run in self._runs.values() if run.is_known}

    def knows_changes_since(self, version: int) -> bool:
        """Whether `changes_since` has all; else so many runs were removed that a snapshot is to be sent."""
        return version >= self._last_forgotten_removal

    def changes_since(self, version: int) -> dict[str, dict[str, Any] | None]:
        """The fields that have changed since, by job; None for a run that is gone."""
        found: dict[str, dict[str, Any] | None] = {}
        for run in reversed(self._runs.values()):
            changed = {name: run.values[name] for name, at in run.changed_in.items() if at > version}
            if not changed:
                if run.changed_in:
                    break
                continue  # of this one nothing is known yet
            if run.is_known:
                found[run.job] = changed
        for job, at in reversed(self._removed.items()):
            if at <= version:
                break
            found[job] = None
        return found

    def _store(self, run: LiveRun, values: Mapping[str, Any]) -> None:
        new = {name: value for name, value in values.items() if run.values.get(name) != value}
        if not new:
            return
        self.version += 1
        had_ended = run.has_ended
        run.values.update(new)
        run.changed_in.update(dict.fromkeys(new, self.version))
        self._runs.move_to_end(run.job)
        if run.has_ended and not had_ended:
            self._ended[run.job] = None
            while len(self._ended) > MAX_ENDED_RUNS:
                self.remove(next(iter(self._ended)))

    def _count(self, run: LiveRun, values: Mapping[str, Any], now: float) -> None:
        if "success" in values or "failed" in values:
            done = run.values.get("success", 0) + run.values.get("failed", 0)
            if not run.counts or now - run.counts[-1][0] >= SECONDS_BETWEEN_COUNTS:
                run.counts.append((now, done))
        left = run.seconds_left()
        if left is not None or "left" in run.values:
            self._store(run, {"left": left})


def read_change(change: Mapping[str, Any]) -> dict[str, Any]:
    """The known fields of a change, as what they are; wrong ones are left out."""
    values: dict[str, Any] = {}
    for name, value in change.items():
        try:
            if name in _TEXTS:
                values[name] = str(value)[:MAX_TEXT_CHARS]
            elif name in _WHOLE_NUMBERS:
                values[name] = int(float(value))
            elif name in _NUMBERS:
                values[name] = float(value)
        except (TypeError, ValueError, OverflowError):
            continue
    if values.get("status") == "SUCCEEDED":
        values["overall"] = 100.0
    return values
