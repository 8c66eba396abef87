"""Compares what the backend and Serve received with what was published."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from shared.statuses import JobStatus
from tests.chaos.effect_log import EffectLog, Faults
from worker.sandbox.backend.state import State
from worker.sandbox.seed import SeededProject

FINAL = {status for status in JobStatus if status.is_final}


@dataclass
class AuditResult:
    """Violations as text, and how often an effect was repeated where that is allowed."""

    violations: list[str] = field(default_factory=list)
    tasks_written_twice: int = 0
    ends_reported_twice: int = 0
    failed: list[str] = field(default_factory=list)
    """Errors of the runs that failed for an unavailable dependency, which is allowed."""

    def check(self, condition: bool, violation: str) -> None:
        """Record `violation` unless `condition` holds."""
        if not condition:
            self.violations.append(violation)


class Auditor:
    """Checks requests against the workers' effect log: only an effect that was in flight may be repeated."""

    def __init__(self, state: State, effect_log: EffectLog, faults: Faults | None = None) -> None:
        self._state = state
        self._entries = effect_log.entries()
        self._faults = faults or Faults()
        self.result = AuditResult()

    def check_job(self, job: str) -> dict[str, Any]:
        """One final status, nothing after it, and `overall` never falls. Returns the backend's record."""
        row = self._state.job(int(job)) or {}
        patches = self._patches(job)
        ends = [patch for patch in patches if patch["body"].get("status") in FINAL]
        check = self.result.check
        check(JobStatus(row["status"]).is_final, f"job {job} has not ended: {row['status']}")
        check(len(ends) > 0, f"job {job}: no final status")
        results = {json.dumps([end["body"].get(key) for key in ("status", "result")]) for end in ends}
        check(len(results) <= 1, f"job {job}: {len(results)} different ends")
        if ends:
            after_end = patches[patches.index(ends[0]) :]
            check(all(patch in ends for patch in after_end), f"job {job}: reports after the end")
        self.result.ends_reported_twice += len(ends) > 1
        self._check_once(f"end {job}", [end["time"] for end in ends])
        overall = [
            patch["body"]["progress_record"]["current_progress"]["overall"]
            for patch in patches
            if patch["body"].get("progress_record")
        ]
        check(overall == sorted(overall), f"job {job}: overall falls: {overall}")
        return row

    def check_succeeded(self, job: str) -> dict[str, Any]:
        """The checks of every job, and that it succeeded. Returns the backend's record."""
        row = self.check_job(job)
        self.result.check(row["status"] == "SUCCEEDED", f"job {job}: {row['status']} {row['result']}")
        return row

    def check_deployment(self, job: str) -> None:
        """A deployment that succeeded has one application record, named by its result; others have none."""
        row = self._state.job(int(job)) or {}
        records = self._state.rows("SELECT id FROM serve_applications WHERE job = ?", int(job))
        expected = int(row["status"] == "SUCCEEDED")
        self.result.check(
            len(records) == expected, f"job {job}: {row['status']}, {len(records)} application records"
        )
        if expected:
            result = {"serve_application": records[0]["id"]} if records else None
            self.result.check(row["result"] == result, f"job {job}: {row['result']} instead of {result}")

    def check_dispatched_once(self, code: str) -> None:
        query = "SELECT count(*) FROM jobs WHERE plugin LIKE ? AND action = 'deployment'"
        count = self._state.value(query, f"{code}@%")
        self.result.check(count == 1, f"{code}: {count} dispatches")

    def check_tasks(self, job: str, project: SeededProject) -> None:
        """Every task is counted once and written; a task that is written twice gets the same data again."""
        row = self._state.job(int(job)) or {}
        result, total = row["result"] or {}, len(project.tasks)
        counts = {name: result.get(name) for name in ("total_tasks", "success_count", "failed_count")}
        expected = {"total_tasks": total, "success_count": total, "failed_count": 0}
        failures = result.get("failures")
        self.result.check(counts == expected, f"job {job}: {counts}, not {expected}: {failures}")
        writes_by_task: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        ids = (project.tasks.start, project.tasks.stop)
        for write in self._state.rows("SELECT * FROM annotations WHERE task >= ? AND task < ?", *ids):
            writes_by_task[write["task"]].append(write)
        written = len(writes_by_task)
        self.result.check(written == total, f"job {job}: {total - written} tasks not written")
        for task, writes in writes_by_task.items():
            self.result.tasks_written_twice += len(writes) > 1
            same = len({json.dumps(write["data"], sort_keys=True) for write in writes}) == 1
            self.result.check(same, f"task {task}: written with different data")
            self._check_once(f"task {task}", [write["time"] for write in writes])

    def _check_once(self, effect: str, times: Sequence[float]) -> None:
        """The backend received `effect` at `times`; each repetition needs a fault that explains it."""
        entries = self._entries.get(effect, [])
        begun = [entry for entry in entries if not entry.is_recorded]
        check = self.result.check
        check(bool(begun), f"{effect}: not in the effect log")
        recorded = next((entry for entry in entries if entry.is_recorded), None)
        for first, second in pairwise(begun):
            after_record = recorded is not None and recorded.time < second.time
            check(not after_record, f"{effect}: begun again after it was recorded")
            check(
                after_record or self._faults.explains_repetition(first, second),
                f"{effect}: begun again after {second.time - first.time:.2f} s without a fault",
            )
        if begun and len(times) > len(begun):
            # The HTTP client itself repeated the request.
            explained = self._faults.may_have_lost_response(begun[0].time, max(times))
            check(
                explained, f"{effect}: received {len(times)} times, begun {len(begun)} times, without a fault"
            )

    def _patches(self, job: str) -> list[dict[str, Any]]:
        """All PATCH requests that the backend received and could read, also those that it rejected."""
        query = (
            "SELECT time, body FROM requests WHERE method = 'PATCH' AND path = ? AND status < 500"
            " ORDER BY rowid"
        )
        rows = self._state.rows(query, f"/jobs/{job}/")
        return [{"time": row["time"], "body": json.loads(row["body"])} for row in rows]
