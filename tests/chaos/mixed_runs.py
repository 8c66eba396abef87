"""Runs of every kind at the same time, and the audit of what became of them."""

import re
import time
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.chaos.audit import AuditResult
from tests.chaos.effect_log import Faults
from tests.chaos.platform_harness import Fleet
from worker.sandbox import wait_for
from worker.sandbox.seed import SeededProject

ALLOWED_ERRORS = re.compile(
    r"Serve deploy capacity check failed: agent unreachable \(\w+\)"
    r"|Pre-processor deployment dispatch failed \(\w+\)"
    # The job's own error follows.
    r"|Pre-processor deployment failed: job reached terminal state \(FAILED\)"
    r"(: Serve deploy capacity check failed: agent unreachable \(\w+\))?"
)
"""Errors of runs that call a dependency only once, and called it during its outage."""


@dataclass
class MixedRuns:
    """Runs that are prepared together and published in an order drawn from `random`."""

    fleet: Fleet
    random: Random
    deploys: dict[str, str] = field(default_factory=dict)
    by_file: dict[str, SeededProject] = field(default_factory=dict)
    by_inference: dict[str, tuple[SeededProject, str]] = field(default_factory=dict)
    faults: Faults = field(default_factory=Faults)

    @property
    def jobs(self) -> list[str]:
        return [*self.deploys, *self.by_file, *self.by_inference]

    def prepare(self, count: int, *, tasks: int = 12, pre_processors: int = 4) -> None:
        """Of ten runs four deploy, four annotate by file, two by inference."""
        fleet = self.fleet
        codes = [fleet.new_pre_processor() for _ in range(pre_processors)]
        for number in range(count):
            if number % 10 < 4:
                plugin = fleet.harness.new_plugin()
                self.deploys[fleet.new_job(plugin, "deployment")] = plugin
                continue
            job, project = fleet.new_job("echo@1.0.0", "to_task"), fleet.new_project(tasks)
            if number % 10 < 8:
                self.by_file[job] = project
            else:
                self.by_inference[job] = (project, codes[number % len(codes)])

    def publish(self, within_seconds: float = 0.0) -> None:
        """Publish the messages of all runs, evenly spread over `within_seconds`."""
        jobs = self.jobs
        self.random.shuffle(jobs)
        for job in jobs:
            self.publish_one(job)
            time.sleep(within_seconds / len(jobs))

    def publish_one(self, job: str) -> None:
        """Publish the message of `job`."""
        if job in self.deploys:
            self.fleet.deploy(job, self.deploys[job])
        elif job in self.by_file:
            self.fleet.to_task_by_file(job, self.by_file[job])
        else:
            self.fleet.to_task_by_inference(job, *self.by_inference[job])

    def wait_for_ends(self, seconds: float) -> None:
        wait_for(lambda: all(map(self.fleet.has_ended, self.jobs)), seconds, "the end of every run")

    def audit(self, *, allow_failures: bool = False) -> AuditResult:
        """Check every run and its effects. `allow_failures`: runs may fail with one of ALLOWED_ERRORS."""
        auditor = self.fleet.auditor(self.faults)
        check = auditor.result.check
        errors: list[str] = []

        def succeeded(job: str) -> bool:
            row: dict[str, Any] = auditor.check_job(job)
            error = str((row["result"] or {}).get("error"))
            has_succeeded = row["status"] == "SUCCEEDED"
            is_allowed = allow_failures and ALLOWED_ERRORS.fullmatch(error) is not None
            check(has_succeeded or is_allowed, f"job {job}: {row['status']} {row['result']}")
            errors.extend([] if has_succeeded else [error])
            return has_succeeded

        for job in self.deploys:
            succeeded(job)
            auditor.check_deployment(job)
        for job, project in self.by_file.items():
            if succeeded(job):
                auditor.check_tasks(job, project)
        used_codes = set()
        for job, (project, code) in self.by_inference.items():
            if succeeded(job):
                used_codes.add(code)
                auditor.check_tasks(job, project)
        for code in {code for _, code in self.by_inference.values()}:
            count = self.fleet.dispatch_count(code)
            failed = sum("dispatch failed" in error or "job reached" in error for error in errors)
            # A dispatch that failed with its request may be repeated. A pre-processor that served a run was
            # dispatched; one whose only request met the outage was not.
            check(
                (code in used_codes) <= count <= 1 + failed,
                f"{code}: {count} dispatches, {failed} runs failed for a dispatch",
            )
        for plugin in self.deploys.values():
            submissions = self.fleet.harness.serve.submission_count(plugin)
            check(submissions <= 1, f"{plugin}: submitted {submissions} times")
        auditor.result.failed = errors
        return auditor.result
