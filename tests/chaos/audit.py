"""Compares what the backend and Serve received with what was published."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from shared.statuses import JobStatus
from tests.chaos.effect_log import Disturbances, EffectLog
from worker.sandbox.backend.state import State
from worker.sandbox.seed import SeededProject

FINAL = {status for status in JobStatus if status.is_final}


@dataclass
class Findings:
    """What is wrong, in words; and how much was done twice where that is allowed."""

    wrong: list[str] = field(default_factory=list)
    written_twice: int = 0
    ended_twice: int = 0
    failed: list[str] = field(default_factory=list)

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)


class Auditor:
    """Holds what was received against the workers' effect_log: only what was in flight may be there twice."""

    def __init__(self, state: State, effect_log: EffectLog, disturbances: Disturbances | None = None) -> None:
        self._state = state
        self._entries = effect_log.entries()
        self._disturbances = disturbances or Disturbances()
        self.findings = Findings()

    def job(self, job: str) -> dict[str, Any]:
        """One final status, nothing after it; `overall` never falls."""
        row = self._state.job(int(job)) or {}
        said = self._patches(job)
        ends = [each for each in said if each["body"].get("status") in FINAL]
        say = self.findings.expect
        say(JobStatus(row["status"]).is_final, f"job {job} has not ended: {row['status']}")
        say(len(ends) > 0, f"job {job}: no final status")
        results = {json.dumps([each["body"].get(key) for key in ("status", "result")]) for each in ends}
        say(len(results) <= 1, f"job {job}: {len(results)} different ends")
        if ends:
            say(all(each in ends for each in said[said.index(ends[0]) :]), f"job {job}: more after the end")
        self.findings.ended_twice += len(ends) > 1
        self._once(f"end {job}", [each["time"] for each in ends])
        overall = [
            each["body"]["progress_record"]["current_progress"]["overall"]
            for each in said
            if each["body"].get("progress_record")
        ]
        say(overall == sorted(overall), f"job {job}: overall falls: {overall}")
        return row

    def succeeded(self, job: str) -> dict[str, Any]:
        row = self.job(job)
        self.findings.expect(row["status"] == "SUCCEEDED", f"job {job}: {row['status']} {row['result']}")
        return row

    def deployment(self, job: str) -> None:
        """One record of one that succeeded, none of another; what the job says of it is true."""
        row = self._state.job(int(job)) or {}
        records = self._state.rows("SELECT id FROM serve_applications WHERE job = ?", int(job))
        expected = int(row["status"] == "SUCCEEDED")
        self.findings.expect(
            len(records) == expected, f"job {job}: {row['status']}, {len(records)} application records"
        )
        if expected:
            said = {"serve_application": records[0]["id"]} if records else None
            self.findings.expect(row["result"] == said, f"job {job}: {row['result']} instead of {said}")

    def dispatched_once(self, code: str) -> None:
        query = "SELECT count(*) FROM jobs WHERE plugin LIKE ? AND action = 'deployment'"
        count = self._state.value(query, f"{code}@%")
        self.findings.expect(count == 1, f"{code}: {count} dispatches")

    def tasks(self, job: str, project: SeededProject) -> None:
        """Each is counted once and written, with the same data should it be written again."""
        row = self._state.job(int(job)) or {}
        result, total = row["result"] or {}, len(project.tasks)
        counts = {name: result.get(name) for name in ("total_tasks", "success_count", "failed_count")}
        expected = {"total_tasks": total, "success_count": total, "failed_count": 0}
        self.findings.expect(counts == expected, f"job {job}: {counts}, not {expected}")
        writes: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        ids = (project.tasks.start, project.tasks.stop)
        for write in self._state.rows("SELECT * FROM annotations WHERE task >= ? AND task < ?", *ids):
            writes[write["task"]].append(write)
        self.findings.expect(len(writes) == total, f"job {job}: {total - len(writes)} tasks not written")
        for task, each in writes.items():
            self.findings.written_twice += len(each) > 1
            same = len({json.dumps(write["data"], sort_keys=True) for write in each}) == 1
            self.findings.expect(same, f"task {task}: written with different data")
            self._once(f"task {task}", [write["time"] for write in each])

    def _once(self, what: str, times: Sequence[float]) -> None:
        """The backend has it of those `times`; more than one needs a reason for each."""
        entries = self._entries.get(what, [])
        begun = [entry for entry in entries if not entry.is_done]
        say = self.findings.expect
        say(bool(begun), f"{what}: in nobody's effect_log")
        done = next((entry for entry in entries if entry.is_done), None)
        for first, again in pairwise(begun):
            after_done = done is not None and done.time < again.time
            say(not after_done, f"{what}: begun again after it was on record")
            say(
                after_done or self._disturbances.excuse(first, again),
                f"{what}: begun again after {again.time - first.time:.2f} s, and nothing had happened",
            )
        if begun and len(times) > len(begun):
            # A client's own second try.
            lost = self._disturbances.cut(begun[0].time, max(times))
            say(lost, f"{what}: {len(times)} times, begun {len(begun)} times, and no answer was lost")

    def _patches(self, job: str) -> list[dict[str, Any]]:
        """All that the backend was sent and understood, also what it rejected."""
        query = (
            "SELECT time, body FROM requests WHERE method = 'PATCH' AND path = ? AND status < 500"
            " ORDER BY rowid"
        )
        rows = self._state.rows(query, f"/jobs/{job}/")
        return [{"time": row["time"], "body": json.loads(row["body"])} for row in rows]
