"""Compares what the backend and Serve received with what was published."""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from shared.statuses import JobStatus
from worker.sandbox.backend.state import State
from worker.sandbox.seed import SeededProject


@dataclass
class Findings:
    """What is wrong, in words; and how much was done twice where that is allowed."""

    wrong: list[str] = field(default_factory=list)
    written_twice: int = 0
    failed: list[str] = field(default_factory=list)

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)


class Auditor:
    """`answer_lost`: the answer to something was lost, so that it may have been said twice."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.findings = Findings()

    def job(self, job: str, *, answer_lost: bool = False) -> dict[str, Any]:
        """One final status, nothing after it, RUNNING before; `overall` never falls."""
        row = self._state.job(int(job)) or {}
        said = self._patches(job)
        ends = [each for each in said if each.get("status") in set(JobStatus) - {"PENDING", "RUNNING"}]
        most = len(ends) if answer_lost else 1
        say = self.findings.expect
        say(JobStatus(row["status"]).is_final, f"job {job} has not ended: {row['status']}")
        say(1 <= len(ends) <= most, f"job {job}: {len(ends)} final statuses")
        say(
            len({json.dumps(each.get("result"), sort_keys=True) for each in ends}) <= 1,
            f"job {job}: two ends",
        )
        if ends:
            say(said.index(ends[0]) >= len(said) - len(ends), f"job {job}: something after the end")
        overall = [
            each["progress_record"]["current_progress"]["overall"]
            for each in said
            if each.get("progress_record")
        ]
        say(overall == sorted(overall), f"job {job}: overall falls: {overall}")
        return row

    def succeeded(self, job: str, **options: Any) -> dict[str, Any]:
        row = self.job(job, **options)
        self.findings.expect(row["status"] == "SUCCEEDED", f"job {job}: {row['status']} {row['result']}")
        return row

    def deployment(self, job: str) -> None:
        """One record; what the job says of it is true."""
        row = self._state.job(int(job)) or {}
        records = self._state.rows("SELECT id FROM serve_applications WHERE job = ?", int(job))
        self.findings.expect(len(records) == 1, f"job {job}: {len(records)} application records")
        said = {"serve_application": records[0]["id"]} if records else None
        self.findings.expect(row["result"] == said, f"job {job}: {row['result']} instead of {said}")

    def dispatched_once(self, code: str) -> None:
        query = "SELECT count(*) FROM jobs WHERE plugin LIKE ? AND action = 'deployment'"
        count = self._state.value(query, f"{code}@%")
        self.findings.expect(count == 1, f"{code}: {count} dispatches")

    def tasks(
        self, job: str, project: SeededProject, *, in_flight_at: list[float], answers_lost: bool = False
    ) -> None:
        """Each is written and counted; twice only when it was in flight at one of the moments."""
        row = self._state.job(int(job)) or {}
        result, total = row["result"] or {}, len(project.tasks)
        counts = {name: result.get(name) for name in ("total_tasks", "success_count", "failed_count")}
        expected = {"total_tasks": total, "success_count": total, "failed_count": 0}
        self.findings.expect(counts == expected, f"job {job}: {counts}, not {expected}")
        first: dict[int, float] = {}
        writes: Counter[int] = Counter()
        ids = (project.tasks.start, project.tasks.stop)
        for write in self._state.rows("SELECT * FROM annotations WHERE task >= ? AND task < ?", *ids):
            writes[write["task"]] += 1
            first.setdefault(write["task"], write["time"])
        self.findings.expect(len(writes) == total, f"job {job}: {total - len(writes)} tasks not written")
        for task, count in writes.items():
            if count == 1:
                continue
            self.findings.written_twice += 1
            excused = answers_lost or any(abs(first[task] - moment) < 1.5 for moment in in_flight_at)
            self.findings.expect(excused, f"task {task}: written {count} times, not in flight at a kill")

    def _patches(self, job: str) -> list[dict[str, Any]]:
        query = (
            "SELECT body FROM requests WHERE method = 'PATCH' AND path = ? AND status < 300 ORDER BY rowid"
        )
        return [json.loads(row["body"]) for row in self._state.rows(query, f"/jobs/{job}/")]
